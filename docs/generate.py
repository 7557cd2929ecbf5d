"""Build hook of the docs site: reference tables generated from the schemas of recipes, results, ledgers and summaries.

A page gets the tables in place of `<!-- recipe keys -->`, `<!-- plugin options -->`, `<!-- study keys -->`,
`<!-- result keys -->`, `<!-- ledger keys -->` and `<!-- summary keys -->`, and what published recipes state in place of
`<!-- published recipes -->`. The schema of recipes is the output of `neoplug schema`, so the tables list the keys and
defaults of the installed version.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

Schema = dict[str, Any]

SECTIONS = ("teacher", "student", "data", "train", "evaluate", "reference")
BOUNDS = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the markers of generated tables."""
    for marker, generate in (("<!-- recipe keys -->", recipe_keys), ("<!-- plugin options -->", plugin_options)):
        if marker in markdown:
            markdown = markdown.replace(marker, "\n".join(generate(schema())))
    others = {"study": study_keys, "result": result_keys, "ledger": ledger_keys, "summary": summary_keys}
    for name, keys in others.items():
        if (marker := f"<!-- {name} keys -->") in markdown:
            markdown = markdown.replace(marker, "\n".join(keys()))
    if "<!-- published recipes -->" in markdown:
        markdown = markdown.replace("<!-- published recipes -->", "\n".join(published_recipes()))
    return markdown


def published_recipes() -> Iterator[str]:
    """Yield what each published recipe states in its section `reference`, under the name of the recipe."""
    from neoplug import recipe
    from neoplug.recipe.source import shipped

    for name in (name for name in shipped() if name.startswith("published/")):
        reference = recipe.load(name).recipe.reference
        assert reference is not None
        yield from (f"### {name}", "", f"{reference.claim.rstrip('.')}. Source: {reference.source}.", "")
        if reference.adapted:
            yield from ("Adapted to distillation.", "")
        stated = {"Table": reference.table, "Budget": reference.budget, "Hardware": reference.hardware}
        yield from (f"- {title}: {text}" for title, text in stated.items() if text)
        yield from (f"- Target: `{metric}` {target}" for metric, target in reference.targets.items())
        yield from (f"- Left open: {text}" for text in reference.left_open)
        yield ""


def result_keys() -> Iterator[str]:
    """Yield a table of the keys of result.json, and its JSON schema."""
    from neoplug.runs.result import RunResult

    found = RunResult.model_json_schema()
    first = ("format", "status", "reason")
    yield from ("| key | type | meaning |", "| --- | --- | --- |")
    for name, value in sorted(found["properties"].items(), key=lambda item: item[0] not in first):
        yield f"| `{name}` | {kind_of(value)} | {value['description']} |"
    for name, title in {"sample": "Sample", "best": "Best", "dealt_anew": "Dealt"}.items():
        keys = ", ".join(f"`{key}`" for key in found["$defs"][title]["properties"])
        yield from ("", f"`{name}` has {keys}.")
    yield from folded(found)


def summary_keys() -> Iterator[str]:
    """Yield the keys of a study's summary.json, a table for each kind of object in it, and its JSON schema."""
    from neoplug.studies.summary_schema import Summary

    found = Summary.model_json_schema()
    yield from meanings(found, found["$defs"], "##")
    yield from folded(found)


def meanings(definition: Schema, definitions: Schema, level: str) -> Iterator[str]:
    """Yield a table of the keys of an object, and a heading and a table for each key that holds objects."""
    yield from ("| key | type | meaning |", "| --- | --- | --- |")
    objects = {}
    for name, value in definition["properties"].items():
        kind = kind_of(value)
        if found := re.search(r"\$defs/(\w+)", json.dumps(value)):
            objects[name] = definitions[found[1]]
            kind = "list of objects" if value.get("type") == "array" else "object"
        yield f"| `{name}` | {kind} | {value['description']} |"
    for name, part in objects.items():
        yield from ("", f"{level} `{name}`", "", part["description"], "")
        yield from meanings(part, definitions, level + "#")


def folded(found: Schema) -> Iterator[str]:
    """Yield a JSON schema that a reader can unfold."""
    yield from ("", "<details markdown><summary>JSON schema</summary>", "", "```json")
    yield from json.dumps(found, indent=2, ensure_ascii=False).splitlines()
    yield from ("```", "", "</details>")


def study_keys() -> Iterator[str]:
    """Yield a section for the top level of a study file and for each section in it."""
    from neoplug.studies.schema import StudyFile

    found = StudyFile.model_json_schema()
    yield from section("Top level", found, found["required"])
    titles = {"Searched": "search.KEY", "Metric": "metrics.NAME", "Contrast": "contrasts", "Executor": "executor"}
    titles |= {"Local": "executor.local", "Ray": "executor.ray"}
    for name, title in titles.items():
        yield from section(f"`{title}`", found["$defs"][name], found["$defs"][name].get("required", []))


def ledger_keys() -> Iterator[str]:
    """Yield a table of the keys of a line of a study's ledger."""
    from neoplug.studies.ledger import Row

    yield from ("| key | type | meaning |", "| --- | --- | --- |")
    for name, value in Row.model_json_schema()["properties"].items():
        yield f"| `{name}` | {kind_of(value)} | {value['description']} |"


@cache
def schema() -> Schema:
    """Return the JSON schema of recipes with the options of all installed plugins."""
    command = [sys.executable, "-m", "neoplug", "schema"]
    found: Schema = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return found


def recipe_keys(found: Schema) -> Iterator[str]:
    """Yield a section for the top level and for each section with fixed keys."""
    whole = found["then"]  # what a recipe without `extends` must have
    yield from section("Top level", found, whole["required"])
    definitions = found["$defs"]
    for name in SECTIONS:
        definition = definitions[name.capitalize()]
        required = whole["properties"].get(name, definition).get("required", [])
        yield from section(f"`{name}`", definition, required)
    for title, name in (("`data.sources.NAME`", "Source"), ("`reference.targets.METRIC`", "Target")):
        yield from section(title, definitions[name], definitions[name].get("required", []))


def section(title: str, definition: Schema, required: list[str]) -> Iterator[str]:
    """Yield the heading, the description and the table of keys of one definition."""
    yield from (f"## {title}", "", described(definition), "")
    yield from table(definition, required)


def plugin_options(found: Schema) -> Iterator[str]:
    """Yield a heading for each section that takes plugins, and the options of each plugin under the first that fits."""
    listed: dict[str, list[str]] = {}
    for key in found["$defs"]:
        kind, _, plugin = key.rpartition(".neoplug:")
        if kind:
            listed.setdefault(plugin, []).append(kind)
    order = (
        *("source", "adapter", "loss", "token_weights", "optimizer", "schedule", "stops"),
        *("load", "cache", "prepare", "treatments", "probes", "trackers"),
    )
    first = {plugin: min(kinds, key=order.index) for plugin, kinds in listed.items()}
    for kind in order:
        yield from (f"## `{kind}`", "")
        for plugin in sorted(name for name in first if first[name] == kind):
            definition = without_null(found["$defs"][f"{kind}.neoplug:{plugin}"])
            yield from (f"### {plugin}", "", described(definition), "")
            if others := [f"`{other}`" for other in order if other in listed[plugin] and other != kind]:
                yield from (f"Also accepted under {', '.join(others)}.", "")
            yield from table(definition, definition.get("required", []), meanings=True)


def table(definition: Schema, required: list[str], *, meanings: bool = False) -> Iterator[str]:
    """Yield a table of the keys of an object: type, default and, with `meanings`, description."""
    keys = definition.get("properties", {})
    if not keys:
        yield from ("No options.", "")
        return
    yield from ("| key | type | default |" + " meaning |" * meanings, "| --- | --- | --- |" + " --- |" * meanings)
    for name, value in keys.items():
        default = "required" if name in required else as_code(value["default"]) if "default" in value else ""
        meaning = value.get("description", "").replace("|", "\\|").replace("<", "&lt;")
        yield f"| `{name}` | {kind_of(value)} | {default} |" + f" {meaning} |" * meanings
    yield ""


def described(definition: Schema) -> str:
    """Return the description of a definition as Markdown: lines of an aligned list stay lines."""
    lines = definition.get("description", "").splitlines()
    return "\n".join(f"- {line}" if "  " in line.strip() else line for line in lines)


def as_code(value: Any) -> str:
    """Return a value as inline code, in JSON."""
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def kind_of(value: Schema) -> str:
    """Return the type of a key in words."""
    if "$ref" in value:
        return f"section `{value['$ref'].rpartition('/')[2].lower()}`"
    if "enum" in value:
        return ", ".join(as_code(one) for one in value["enum"])
    if "const" in value:
        return as_code(value["const"])
    if "anyOf" in value:
        kinds = dict.fromkeys(kind_of(one) for one in value["anyOf"] if one.get("type") != "null")
        return " or ".join(kinds)
    if "patternProperties" in value:
        return "map of plugins"
    kind = value.get("type", "any")
    if kind == "array":
        return f"list of {kind_of(value['items'])}" if value.get("items") else "list"
    if kind == "object":
        return "map"
    bounds = [words.format(value[bound]) for bound, words in BOUNDS.items() if bound in value]
    return " ".join([*([kind] if isinstance(kind, str) else [" or ".join(kind)]), *bounds])


def without_null(definition: Schema) -> Schema:
    """Return the object schema of a plugin, which may also be empty in a recipe."""
    return next((one for one in definition.get("anyOf", []) if one.get("type") == "object"), definition)
