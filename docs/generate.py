"""Build hook of the docs site: reference tables generated from the schemas of recipes and of results.

A page gets the tables in place of `<!-- recipe keys -->`, `<!-- plugin options -->` and `<!-- result keys -->`. The
schema of recipes is the output of `neoplug schema`, so the tables list the keys and defaults of the installed version.
"""

import json
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
    if "<!-- result keys -->" in markdown:
        markdown = markdown.replace("<!-- result keys -->", "\n".join(result_keys()))
    return markdown


def result_keys() -> Iterator[str]:
    """Yield a table of the keys of result.json, and its JSON schema."""
    from neoplug.runs.result import RunResult

    found = RunResult.model_json_schema()
    first = ("format", "status", "reason")
    yield from ("| key | type | meaning |", "| --- | --- | --- |")
    for name, value in sorted(found["properties"].items(), key=lambda item: item[0] not in first):
        yield f"| `{name}` | {kind_of(value)} | {value['description']} |"
    for title in ("Sample", "Best"):
        keys = ", ".join(f"`{key}`" for key in found["$defs"][title]["properties"])
        yield from ("", f"`{title.lower()}` has {keys}.")
    yield from ("", "<details markdown><summary>JSON schema</summary>", "", "```json")
    yield from json.dumps(found, indent=2, ensure_ascii=False).splitlines()
    yield from ("```", "", "</details>")


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
    order = ("adapter", "loss", "token_weights", "optimizer", "load", "cache", "prepare", "treatments", "probes")
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
