"""The model card of a trained student in the hub's format: description, code to load it, metrics, and origin."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from neoplug.errors.text import escaped
from neoplug.recipe.reference import Reference
from neoplug.registry.measures import MEASURES
from neoplug.registry.nested import numbers
from neoplug.runs.directory import RunDir, as_yaml
from neoplug.runs.publishable import publishable
from neoplug.runs.result import RunResult
from neoplug.runs.saved_student import has_peft_files

COLUMNS = ("before", "after", "teacher")
OWN = {"base": "the student's own base", "ema": "an average of the student's own weights"}  # by `teacher.self`


def card(run: RunDir, result: RunResult, repository: str | None = None) -> str:
    """Return the text of README.md: metadata in YAML, then Markdown.

    result      of a completed run
    repository  hub id that the model is pushed to; None for the card in the run directory
    """
    recipe, lock = publishable(run.resolved), publishable(run.lock)
    parts = [
        f"---\n{_metadata(run, recipe, lock, result)}---\n",
        f"# {escaped(run.path.absolute().name, keep='')}\n",
        _summary(recipe, lock, result),
        f"## Use\n\n{_usage(run, recipe, lock, repository)}",
        f"## On held-out text\n\n{_table(result)}",
        *([f"## Reference\n\n{_reference(reference, result)}"] if (reference := recipe.get("reference")) else []),
        f"## What made it\n\n{_origins(lock)}",
        fenced(as_yaml(recipe), "yaml"),
        "`neoplug run recipe.yaml` runs this recipe again.\n",
    ]
    return "\n".join(parts)


def fenced(text: str, language: str) -> str:
    """Return lines of code as a Markdown block, with a fence longer than any in them."""
    fence = _longer_than_those_of(text, least=3)
    return f"{fence}{language}\n{escaped(text)}{fence}\n"


def code(text: str) -> str:
    """Return a line of code in a Markdown text, with more backticks around it than it has."""
    ticks, pad = _longer_than_those_of(text, least=1), " " if "`" in text else ""
    return f"{ticks}{pad}{escaped(text, keep='')}{pad}{ticks}"


def _longer_than_those_of(text: str, least: int) -> str:
    longest = max(map(len, re.findall("`+", text)), default=0)
    return "`" * max(least, longest + 1)


def _metadata(run: RunDir, recipe: Mapping[str, Any], lock: Mapping[str, Any], result: RunResult) -> str:
    """Return the card's metadata as YAML; base model and data sets are named only if they are on the hub."""
    from huggingface_hub import EvalResult, ModelCardData

    student, data = lock["models"]["student"], run.resolved["data"]
    sources = [data.get("source"), *(part["source"] for part in (data.get("sources") or {}).values())]
    metadata = ModelCardData(
        base_model=student["source"] if student["revision"] else None,
        datasets=[source for source in sources if _is_hub_id(source)] or None,
        library_name=_library(run),
        pipeline_tag="text-generation",
        tags=["neoplug", "knowledge-distillation", *recipe["adapter"], *recipe["loss"]],
        model_name=run.path.absolute().name,
        eval_results=[
            EvalResult("text-generation", "text", "held-out text", name, value, metric_name=measure.title)
            for name, measure in MEASURES.items()
            if isinstance(value := (result.after or {}).get(name), float)
        ],
    )
    return str(metadata.to_yaml()) + "\n"


def _library(run: RunDir) -> str:
    """Return the library that loads the model; an adapter of a plugin's own format needs the plugin."""
    if run.adapter.is_dir():
        return "peft" if has_peft_files(run.adapter) else "neoplug"
    return "transformers"


def _is_hub_id(source: Any) -> bool:
    return isinstance(source, str) and not Path(source).is_absolute() and ":" not in source and source.count("/") == 1


def _summary(recipe: Mapping[str, Any], lock: Mapping[str, Any], result: RunResult) -> str:
    adapters, losses = (escaped(" + ".join(recipe[section]), keep="") for section in ("adapter", "loss"))
    taught = f", taught by {_taught_by(recipe, lock)}" if recipe.get("teacher") else ""
    parameters = f"{result.trainable_parameters:,} of {result.total_parameters:,} parameters"
    return (
        f"{code(recipe['student']['model'])}{taught}, distilled by neoplug with "
        f"{adapters} and {losses}: {result.steps:,} steps, {result.answer_tokens:,} answer tokens, {parameters} "
        "trained.\n"
    )


def _taught_by(recipe: Mapping[str, Any], lock: Mapping[str, Any]) -> str:
    teacher = recipe["teacher"]  # without a model where its output was stored elsewhere
    return OWN.get(teacher.get("self")) or f"`{teacher.get('model') or lock['models']['teacher']['source']}`"


def _usage(run: RunDir, recipe: Mapping[str, Any], lock: Mapping[str, Any], repository: str | None) -> str:
    """Return Python code that loads the model; or a sentence where the base cannot be loaded by a hub id."""
    where = repository or run.path.absolute().name
    return _model_usage(run, recipe, lock, repository, where) + _template_note(run, repository, where)


def _template_note(run: RunDir, repository: str | None, where: str) -> str:
    """Return how to load the tokenizer with the trained chat template; empty where that is the base's."""
    if not (run.adapter / "tokenizer_config.json").is_file():
        return ""
    folder = f"{where!r}, subfolder='adapter'" if run.student.is_dir() else repr(repository or f"{where}/adapter")
    loaded = code(f"AutoTokenizer.from_pretrained({folder})")
    return f"\nIt was trained with another chat template than that of its base; {loaded} has it.\n"


def _model_usage(
    run: RunDir, recipe: Mapping[str, Any], lock: Mapping[str, Any], repository: str | None, where: str
) -> str:
    student = lock["models"]["student"]
    trust = ", trust_remote_code=True" if recipe["student"].get("trust_remote_code") else ""
    if run.model.is_dir():
        return _python(f"model = AutoModelForCausalLM.from_pretrained({repository or f'{where}/model'!r}{trust})")
    if not has_peft_files(run.adapter):
        names = " + ".join(f"`{name}`" for name in recipe["adapter"])
        return f"Its adapter has files of its own, which `load_adapter` of the plugin {names} loads on the base.\n"
    adapter = repr(repository or f"{where}/adapter")
    if run.student.is_dir():
        base, adapter = f"{where!r}, subfolder='student'", f"{where!r}, subfolder='adapter'"
    elif student["revision"]:
        base = f"{student['source']!r}, revision={student['revision']!r}"
    else:
        base = f"{code(student['source'])} (sha256 {student['sha256']})"
        return f"Its base is {base}; `neoplug export` makes one model of both.\n"
    return _python(
        f"base = AutoModelForCausalLM.from_pretrained({base}{trust})",
        f"model = PeftModel.from_pretrained(base, {adapter})",
    )


def _python(*lines: str) -> str:
    imports = ["from transformers import AutoModelForCausalLM"]
    if len(lines) > 1:
        imports.insert(0, "from peft import PeftModel")
    return fenced("\n".join([*imports, "", *lines]) + "\n", "python")


def _table(result: RunResult) -> str:
    """Return the metrics of each evaluation as a Markdown table, and the remarks."""
    evaluations = {name: values for name in COLUMNS if (values := getattr(result, name))}
    rows = [["", *evaluations], ["---"] * (len(evaluations) + 1)]
    for measure in MEASURES.values():
        cells = [_number(values.get(measure.name)) for values in evaluations.values()]
        if any(cells):
            rows.append([f"{measure.title} ({measure.unit})" if measure.unit else measure.title, *cells])
    remarks = "".join(f"\n{remark}\n" for remark in publishable(result.remarks))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + f"\n{remarks}"


def _reference(reference: Mapping[str, Any], result: RunResult) -> str:
    """Return what the recipe claims and has as targets, next to what this run measured, as Markdown."""
    stated = Reference.model_validate(reference)
    source = f"{stated.source}, {stated.table}" if stated.table else stated.source
    lines = [f"{stated.claim} ({source}{'; adapted to distillation' if stated.adapted else ''})", ""]
    measured = numbers(result.after or {})
    for metric, target in stated.targets.items():
        value = measured.get(metric)
        found = "not measured" if value is None else target.compared(value)
        lines.append(f"- {code(metric)}: {target}; this run: {found}")
    lines += [f"- not stated by the source: {text}" for text in stated.left_open]
    return "".join(f"{escaped(' '.join(line.split()), keep='')}\n" for line in lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _origins(lock: Mapping[str, Any]) -> str:
    """Return models, data, seed, versions and hardware of the run as a Markdown list."""
    return "".join(f"- {line}\n" for line in _origin_lines(lock))


def _origin_lines(lock: Mapping[str, Any]) -> Iterator[str]:
    for role, model in lock["models"].items():
        if own := OWN.get(model.get("self")):
            yield f"{role}: {own}"
            continue
        stamp = f"revision {model['revision']}" if model["revision"] else f"sha256 {model['sha256']}"
        yield f"{role}: {code(model['source'])}, {stamp}"
    yield f"data: sha256 of the tokens {lock['data']['fingerprint']}"
    yield f"seed: {lock['seed']}"
    yield "versions: " + ", ".join(f"{name} {version}" for name, version in lock["versions"].items() if version)
    yield f"hardware: {', '.join(lock['hardware']['gpus']) or lock['hardware']['cpu']}, {lock['platform']}"
