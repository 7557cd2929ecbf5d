"""The protocol of a study: what was tuned on what, with which budgets; and the facts that venues ask for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from neoplug.errors.text import presentable
from neoplug.studies.report import numbers
from neoplug.studies.report.material import Material, measure_of
from neoplug.studies.report.paths import published
from neoplug.studies.statistics import POWER

NAMED = 12  # models and data that are listed
Fact = tuple[str, str]


def protocol_of(material: Material) -> list[Fact]:
    """Return what was done, as pairs of a subject and a sentence."""
    study = material.study
    metrics = ", ".join(
        f"{measure_of(name).title} (margin {numbers.plain(margin)})"
        if margin
        else f"{measure_of(name).title} (no margin)"
        for name, margin in study.metrics.items()
    )
    axes = "; ".join(f"{axis}: {', '.join(levels)}" for axis, levels in study.axes.items())
    return [
        ("Arms", f"{len(study.arms):,}, from {axes}."),
        (
            "Test seeds",
            f"{', '.join(map(str, study.seeds))}. Arms share them: the same seed has the same order of data.",
        ),
        ("Metrics", f"{metrics}. The first one chooses."),
        ("Held-out text", _halves(material)),
        ("Tuning", " ".join(_search(material))),
        ("Budgets", " ".join(_budgets(material))),
        ("Planned comparisons", _contrasts(material)),
        ("Failures", _failures(material)),
    ]


def checklist_of(material: Material) -> list[Fact]:
    """Return the facts that the checklists of conferences ask for, as far as the study knows them."""
    return [
        ("Compute", " ".join(_compute(material))),
        ("Hardware", _hardware(material)),
        ("Seeds", f"{numbers.of(len(material.study.seeds), 'test seed')}, stated above; tuning seeds are others."),
        (
            "Error bars",
            "95 % t intervals over seeds of paired differences, unadjusted; p-values adjusted by Holm’s method within "
            f"each family; equivalence by two one-sided tests; smallest detectable differences at power {POWER:g}.",
        ),
        ("Hyperparameters", "The tuned ones stand in the table of runs, all others in the recipe of each run."),
        ("Models and data", _contents(material)),
        ("Licences", "Not recorded by the study; they are those of the models and data named above."),
        ("Reproduction", f"neoplug {material.lock.get('version', 'of an unknown version')}: {_command(material)}"),
    ]


def _halves(material: Material) -> str:
    documents = {line.both_noises.documents for line in material.summary.contrasts if line.both_noises}
    size = f" The test half has {', '.join(map(str, sorted(documents)))} documents." if documents else ""
    return (
        "Split in two by the content of each document. The validation half chooses the tuned values; the test half is "
        f"reported, and only for what was chosen.{size}"
    )


def _search(material: Material) -> Iterator[str]:
    """Yield sentences on what was tuned."""
    search = material.study.search
    if not search.keys:
        yield "None: every run has the values of its recipe. Differences of arms include how well it fits them."
        return
    for key, one in search.keys.items():
        tried = material.searches.get(one.column, pd.Series(dtype=float)).dropna().nunique()
        values = ", ".join(numbers.plain(float(value)) for value in one.values)
        scaled = "; ".join(
            f"times {numbers.plain(factor)} for {axis} {level}"
            for axis, levels in one.scale.items()
            for level, factor in levels.items()
        )
        more = f" ({scaled})" if scaled else ""
        extended = f", extended at an edge up to {numbers.of(one.extend, 'time')} for all arms" if one.extend else ""
        yield f"{key} over {values}{more}{extended}; {tried} different values were tried."
    yield f"Tuning seeds {', '.join(map(str, search.seeds))}; a trial with a run that did not complete is not eligible."
    trials = material.tests.get("trials", pd.Series(dtype=float)).dropna()
    if len(trials):
        low, high = int(trials.min()), int(trials.max())
        equal = (
            f"Every arm had {numbers.of(low, 'trial')}."
            if low == high
            else f"Arms had {low} to {high} trials: not equal."
        )
        yield equal


def _budgets(material: Material) -> Iterator[str]:
    """Yield sentences on tokens and parameters."""
    tests = material.completed
    for column, what in (("tokens", "tokens"), ("trainable_parameters", "trainable parameters")):
        values = pd.to_numeric(tests.get(column, pd.Series(dtype=float)), errors="coerce").dropna()
        if len(values):
            low, high = numbers.count(values.min()), numbers.count(values.max())
            yield f"{low} {what} in every test run." if low == high else f"{low} to {high} {what} a test run."
    if material.study.match:
        yield "Adapters have the sizes at which they train as many parameters as that of the first arm."


def _contrasts(material: Material) -> str:
    if not material.study.contrasts:
        return "None: all that this page shows is exploratory."
    return (
        ". ".join(
            f"{one.name}: {numbers.of(len(one.pairs(material.study.arms)) * len(one.metrics), 'comparison')} with "
            + ", ".join(f"{axis} {level}" for axis, level in one.control.items())
            for one in material.study.contrasts
        )
        + "."
    )


def _failures(material: Material) -> str:
    failed = material.runs[material.runs["status"] != "completed"]
    if failed.empty:
        return f"None of {len(material.runs):,} runs failed."
    counts = ", ".join(
        f"{count:,} {str(status).replace('_', ' ')}" for status, count in failed["status"].value_counts().items()
    )
    return f"{len(failed):,} of {len(material.runs):,} runs did not complete: {counts}."


def _compute(material: Material) -> Iterator[str]:
    seconds = pd.to_numeric(material.runs["seconds"], errors="coerce").dropna()
    if seconds.empty:
        yield "Not known."
        return
    yield f"{numbers.duration(float(seconds.sum()))} in {numbers.of(len(seconds), 'run')}, the search included."
    yield f"A run took {numbers.duration(float(seconds.median()))} in the median."
    memory = pd.to_numeric(material.runs.get("peak_memory_bytes", pd.Series(dtype=float)), errors="coerce").dropna()
    if len(memory):
        yield f"Peak memory of a process: {numbers.short(float(memory.max()) / 1e9)} GB."


def _hardware(material: Material) -> str:
    """Return the hardware that the lock of a kept run names."""
    for run in material.runs["run"]:
        file = material.folder / run / "lock.json"
        if not run or not file.is_file():
            continue
        try:
            hardware = json.loads(file.read_text(encoding="utf-8"))["hardware"]
            gpus = ", ".join(
                str(gpu.get("name", gpu)) if isinstance(gpu, dict) else str(gpu) for gpu in hardware["gpus"]
            )
            memory = numbers.short(hardware["memory_bytes"] / 1e9)
            return presentable(f"{hardware['cpu']}, {hardware['cores']} cores, {memory} GB; GPUs: {gpus or 'none'}.")
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return "Not known: no run folder is left that names it."


def _contents(material: Material) -> str:
    """Return the models, data and files whose contents the study's lock has."""
    contents = material.lock.get("contents")
    if not isinstance(contents, dict) or not contents:
        return "Not known: the study has no lock."
    shown = [published(_name(key)) for key in list(contents)[:NAMED]]
    more = f" and {len(contents) - NAMED} more" if len(contents) > NAMED else ""
    return f"{'; '.join(shown)}{more}. Hashes of their contents are in study.lock.json."


def _name(key: str) -> str:
    """Return what a key of the lock names: the values of its JSON that are set."""
    try:
        named: Any = json.loads(key)
    except ValueError:
        return key
    if not isinstance(named, dict):
        return key
    values = [value for value in named.values() if isinstance(value, str) and value]
    return " ".join(values) or key


def _command(material: Material) -> str:
    overrides = "".join(f" {published(one)}" for one in material.study.overrides)
    return f"neoplug study {Path(material.study.source).name}{overrides} --output DIR"
