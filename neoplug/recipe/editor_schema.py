"""The JSON schema of recipes, with the options of every installed plugin: for completion and validation in editors."""

import logging
from typing import Any

from neoplug.errors import RecipeError
from neoplug.hookspecs import HOOKS_OF_SECTION
from neoplug.recipe.loss_weights import SCHEDULES, CoreKeys
from neoplug.recipe.schema import PLUGIN_MAPS, SECTIONS, SOURCES_OF_TEACHER, Recipe
from neoplug.registry import Entry, answered, class_problems, installed
from neoplug.registry.comments import comments_of
from neoplug.registry.discovery import SHIPPED
from neoplug.registry.options import options_model

logger = logging.getLogger(__name__)
_FILE_PLUGIN = r"\.py:[A-Za-z_][\w.]*(@[\w-]+)?$"
_DEFINITIONS = {name: section.__name__ for name, section in SECTIONS.items()}


def json_schema() -> dict[str, Any]:
    """Return the JSON schema. Imports every installed plugin; an invalid one is left out with a warning."""
    plugins = _usable(installed())
    found: dict[str, Any] = Recipe.model_json_schema()
    definitions = found["$defs"]
    for (*parents, name), section in PLUGIN_MAPS.items():
        home = definitions[_DEFINITIONS[parents[0]]] if parents else found
        home["properties"][name] = _nullable(_plugin_map(section.rpartition(".")[2], plugins, definitions))
    source = _plugin_map("source", plugins, definitions) | {"minProperties": 1, "maxProperties": 1}
    for home, name in (("Data", "source"), ("Data", "eval_source"), ("Source", "source")):
        one = definitions[home]["properties"][name]
        one["anyOf"] = [source if kind.get("type") == "object" else kind for kind in one["anyOf"]]
    for key, definition in _DEFINITIONS.items():
        found["properties"][key] = _nullable({"$ref": f"#/$defs/{definition}"})
    found["properties"]["extends"] = {"type": "string", "description": "a shipped recipe or a file, one level"}
    found["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    found["title"] = "neoplug recipe"
    _require_keys_unless_extending(found)
    return found


def _usable(entries: list[Entry]) -> list[tuple[Entry, type]]:
    """Return the plugins that are valid, with their classes; log the others."""
    usable = []
    for entry in entries:
        try:
            cls = entry.load()
            if problems := class_problems(cls):
                raise RecipeError(problems)
            options_model(cls)
            usable.append((entry, cls))
        except RecipeError as error:
            logger.warning("left out: %s of %s: %s", entry.name, entry.package, error.problems[0].what)
    return usable


def _plugin_map(kind: str, plugins: list[tuple[Entry, type]], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a map of plugins of one kind: NAME, NAME@TAG, PACKAGE:NAME and FILE.py:CLASS.

    definitions  output: gets the schema of each plugin's options
    """
    properties: dict[str, Any] = {}
    patterns: dict[str, Any] = {_FILE_PLUGIN: {"type": ["object", "null"]}}
    names = [entry.name for entry, _ in plugins]
    for entry, cls in plugins:
        if not set(HOOKS_OF_SECTION[kind]) & set(answered(cls)):
            continue
        full = f"{entry.package}:{entry.name}"
        definitions[f"{kind}.{full}"] = _options(kind, cls, f"{kind}.{full}", definitions)
        options = {"$ref": f"#/$defs/{kind}.{full}"}
        patterns[rf"^{_escape(full)}(@[\w-]+)?$"] = options
        if names.count(entry.name) == 1 or entry.package == SHIPPED:
            properties[entry.name] = options
            patterns[rf"^{_escape(entry.name)}@[\w-]+$"] = options
    return {"type": "object", "properties": properties, "patternProperties": patterns, "additionalProperties": False}


def _escape(text: str) -> str:
    """Escape a text for the regular expressions of JSON Schema, which have fewer escapes than Python's."""
    return "".join(letter if letter.isalnum() or letter in "_:-" else f"\\{letter}" for letter in text)


def _options(kind: str, cls: type, name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a plugin's options. `definitions` gets those of the types in them, under `name`."""
    try:
        options = options_model(cls).model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
        definitions |= {f"{name}.{inner}": schema for inner, schema in options.pop("$defs", {}).items()}
    except Exception as error:  # a default or type without a JSON form: it is still checked on loading
        logger.warning("%s: its options are not described: %s", cls.__qualname__, error)
        options = {"type": "object"}
    for option, comment in comments_of(cls).items() if "properties" in options else ():
        options["properties"][option] = options["properties"][option] | {"description": comment}
    if kind == "loss":
        options["properties"] = _core_keys() | options.get("properties", {})
    options["title"] = cls.__qualname__
    if cls.__doc__:
        options["description"] = cls.__doc__.strip().splitlines()[0]
    return _nullable(options) if not options.get("required") else options


def _core_keys() -> dict[str, Any]:
    """Return the schemas of the keys of a loss that are not options of its plugin."""
    keys: dict[str, Any] = options_model(CoreKeys).model_json_schema()["properties"]
    maps = [
        {
            "type": "object",
            "properties": {name: _nullable(options_model(cls).model_json_schema())},
            "required": [name],
            "additionalProperties": False,
        }
        for name, cls in SCHEDULES.items()
    ]
    return keys | {"schedule": {"anyOf": [{"enum": list(SCHEDULES)}, *maps], "title": "schedule"}}


def _nullable(described: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [described, {"type": "null"}]}


def _require_keys_unless_extending(found: dict[str, Any]) -> None:
    """Make required keys optional in a recipe with `extends`: the extended one may have them."""
    keys = {"student": {"required": found["$defs"]["Student"].pop("required")}}
    keys["teacher"] = {"anyOf": [{"required": [key]} for key in SOURCES_OF_TEACHER]}
    del found["$defs"]["Data"]["required"]
    keys["data"] = {"anyOf": [{"required": ["source"]}, {"required": ["sources"]}]}
    complete = {"required": found.pop("required"), "properties": keys}
    found |= {"if": {"not": {"required": ["extends"]}}, "then": complete}
