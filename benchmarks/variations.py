"""Mostly valid variations of recipes, as functions of a seed: other values, plugins and overrides, other YAML."""

import random
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import yaml

from neoplug.recipe.editor_schema import json_schema

Key = tuple[str, ...]
Change = tuple[Key, Any]  # a path and its new value; None: the key is left out
Variation = Callable[[random.Random, dict[str, Any]], Iterator[Change]]
SECTIONS = {"train": "Train", "data": "Data", "evaluate": "Evaluate", "student": "Student", "teacher": "Teacher"}
ONE, SEVERAL = ("adapter", "optimizer"), ("loss", "token_weights")  # plugins that a recipe names under them
NEEDED = ("model", "source", "prepare")
OF_ANOTHER_TEACHER = ("self", "decay")  # values that a teacher with a model refuses
COMMENTS = ("# a comment", "#", "# a: [b", "")


def variation(text: str, seed: int) -> str:
    """Return a recipe's text with one to three changes, in another style of YAML."""
    rng = random.Random(f"variation {seed}")
    recipe = yaml.safe_load(text)
    for path, value in list(_changes(rng, recipe)):
        _apply(recipe, path, value)
    return styled(recipe, rng)


def overriding_variation(text: str, seed: int) -> Iterator[str]:
    """Yield one to three changes to a recipe's text as overrides."""
    rng = random.Random(f"variation {seed}")
    for path, value in _changes(rng, yaml.safe_load(text)):
        written = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
        yield f"{'.'.join(path)}={written}"


def styled(recipe: Mapping[str, Any], rng: random.Random) -> str:
    """Return YAML of the same values: other order of keys, flow style, quotes, anchors, comments, indentation."""
    node = yaml.SafeDumper("").represent_data(recipe)
    _restyle(node, rng, {})
    text = yaml.serialize(
        node,
        Dumper=yaml.SafeDumper,
        indent=rng.choice((2, 4, 7)),
        width=10_000,
        explicit_start=rng.random() < 0.3,
        line_break=rng.choice(("\n", "\n", "\r\n")),
    )
    return "".join(_commented(line, rng) for line in text.splitlines(keepends=True))


def _restyle(node: yaml.Node, rng: random.Random, scalars: dict[tuple[str, str], yaml.Node]) -> None:
    """Change the style of a node and of those below it, in place.

    scalars  the first node of each value: an equal one may become its alias
    """
    if isinstance(node, yaml.ScalarNode):
        node.style = rng.choice((None, None, "'", '"')) if node.tag.endswith(":str") else None
        return
    node.flow_style = rng.random() < 0.3
    if isinstance(node, yaml.MappingNode):
        rng.shuffle(node.value)
    for place, child in enumerate(node.value):
        for part in child if isinstance(child, tuple) else [child]:
            _restyle(part, rng, scalars)
        value = child[-1] if isinstance(child, tuple) else child
        if isinstance(value, yaml.ScalarNode) and rng.random() < 0.5:
            value = scalars.setdefault((value.tag, value.value), value)
            node.value[place] = (child[0], value) if isinstance(child, tuple) else value


def _commented(line: str, rng: random.Random) -> str:
    """Return a line, some with a comment behind them, or with a comment or an empty line before them."""
    body = line.rstrip("\r\n")
    end = line[len(body) :]
    if rng.random() < 0.1:
        body += f"  {rng.choice(COMMENTS)}"
    return f"{rng.choice(COMMENTS)}{end}{body}{end}" if rng.random() < 0.1 and body != "---" else body + end


def _changes(rng: random.Random, recipe: dict[str, Any]) -> Iterator[Change]:
    """Yield what one to three variations change."""
    for _ in range(rng.randint(1, 3)):
        yield from rng.choice(VARIATIONS)(rng, recipe)


def _value(rng: random.Random, recipe: dict[str, Any]) -> Iterator[Change]:
    section = rng.choice([*SECTIONS])
    properties = _schema()["$defs"][SECTIONS[section]]["properties"]
    properties = {key: kind for key, kind in properties.items() if key not in OF_ANOTHER_TEACHER}
    yield from (((section, key), value) for key, value in _sampled(rng, properties))


def _option(rng: random.Random, recipe: dict[str, Any]) -> Iterator[Change]:
    section = rng.choice([name for name in (*ONE, *SEVERAL) if recipe.get(name)])
    name = rng.choice([*recipe[section]])
    yield from (((section, name, key), value) for key, value in _sampled(rng, _options(section, name)))


def _plugin(rng: random.Random, recipe: dict[str, Any]) -> Iterator[Change]:
    section = rng.choice((*ONE, *SEVERAL))
    known = recipe.get(section) or {}
    name = rng.choice([name for name in _catalogue(section) if name not in known])
    if section in ONE:
        yield from (((section, other), None) for other in known)
    yield (section, name), dict(_sampled(rng, _options(section, name)))


def _left_out(rng: random.Random, recipe: dict[str, Any]) -> Iterator[Change]:
    sections = [section for section in ("train", "optimizer") if section in recipe]
    keys = [(section, key) for section in (*SECTIONS, "loss") for key in recipe.get(section) or ()]
    yield rng.choice([*((section,) for section in sections), *(key for key in keys if key[1] not in NEEDED)]), None


VARIATIONS: tuple[Variation, ...] = (_value, _value, _option, _option, _plugin, _left_out)


def _apply(recipe: dict[str, Any], path: Key, value: Any) -> None:
    """Change a recipe; what is left out is that of the recipe that it extends, or the default."""
    *above, last = path
    for key in above:
        recipe[key] = recipe.get(key) or {}
        recipe = recipe[key]
    if value is None:
        recipe.pop(last, None)
    else:
        recipe[last] = value


@cache
def _schema() -> dict[str, Any]:
    return json_schema()


def _catalogue(section: str) -> dict[str, Any]:
    """Return the plugins that a section may name."""
    found: dict[str, Any] = _schema()["properties"][section]["anyOf"][0]["properties"]
    return found


def _options(section: str, name: str) -> dict[str, Any]:
    """Return the schemas of a plugin's options."""
    described = _schema()["$defs"][_catalogue(section)[name]["$ref"].removeprefix("#/$defs/")]
    found: dict[str, Any] = described.get("anyOf", [described])[0].get("properties", {})
    return found


def _sampled(rng: random.Random, properties: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield a key that is a number, a truth value or one of some words, with another value in its range."""
    kinds = {
        key: kind
        for key, described in properties.items()
        for kind in described.get("anyOf", [described])[:1]
        if "enum" in kind or kind.get("type") in ("boolean", "integer", "number")
    }
    if kinds:
        key = rng.choice([*kinds])
        yield key, _in_range(rng, kinds[key], properties[key].get("default"))


def _in_range(rng: random.Random, kind: Mapping[str, Any], default: Any) -> Any:
    """Return one of the words, a truth value, or a number: near its default, or an end of its range."""
    if "enum" in kind or kind["type"] == "boolean":
        return rng.choice(kind.get("enum", (True, False)))
    ends = [kind[name] for name in ("minimum", "maximum") if name in kind]
    if rng.random() < 0.05:
        return rng.choice(ends)
    number = (default or 1) * rng.choice((0.25, 0.5, 2, 4))
    number = min(max(number, *ends[:-1], number), ends[-1])
    return max(1, round(number)) if kind["type"] == "integer" else number
