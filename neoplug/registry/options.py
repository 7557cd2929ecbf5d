"""Strict checks of plain values against types; what pydantic finds becomes problems that people can read.

`true` is no number, text is no number, 8.0 is no integer, NaN and infinity are no numbers; 8 is a fine float.
Values go through pydantic as JSON, whose strict mode still makes tuples of lists and paths of text.
"""

import dataclasses
import json
import pathlib
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from neoplug.errors import NeoplugError, Problem, RecipeError, did_you_mean
from neoplug.errors import Path as Key
from neoplug.registry.suggestions import NO_NUMBER, instead, show

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

_NAMES = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "list": "a list",
    "dict": "a map", "model": "a map", "dataclass": "a map", "tuple": "a list", "set": "a list",
    "none_required": "null",
    "is_instance_of": "something that a recipe cannot say",
}  # fmt: skip
_LIMITS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def dump(values: Any) -> str:
    """Write plain values as the JSON that pydantic reads strictly (NaN included: it is refused by name)."""
    return json.dumps(values)


def fields_of(cls: type) -> dict[str, "dataclasses.Field[Any]"]:
    """Return the options of a plugin class: the fields that its constructor takes."""
    return {field.name: field for field in dataclasses.fields(cls) if field.init}


def path_fields(cls: type) -> set[str]:
    """Return the options whose type is made of `pathlib.Path`: they name files or folders that exist."""
    hints = typing.get_type_hints(cls)
    return {name for name in fields_of(cls) if _holds_path(hints[name])}


def _holds_path(hint: Any) -> bool:
    return hint is pathlib.Path or any(_holds_path(part) for part in typing.get_args(hint))


def options_model(cls: type) -> type[BaseModel]:
    """Return a pydantic model of a plugin's options; its aliases are the options' names.

    The author's class stays untouched: the model only checks what it will be built from.
    Raises RecipeError where a type cannot be stated in a recipe.
    """
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
        fields: dict[str, Any] = {
            f"option_{number}": (hints[name], Field(alias=name, title=name, **_default(field)))
            for number, (name, field) in enumerate(fields_of(cls).items())
        }
        return create_model(cls.__name__, __config__=STRICT, **fields)
    except Exception as error:
        why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise RecipeError([Problem(f"the options of {cls.__qualname__} cannot be read from a recipe", why)]) from error


def _default(field: "dataclasses.Field[Any]") -> dict[str, Any]:
    if field.default is not dataclasses.MISSING:
        return {"default": field.default}
    if field.default_factory is not dataclasses.MISSING:
        return {"default_factory": field.default_factory}
    return {}


def build(cls: type, options: Mapping[str, Any], *, path: Key = (), core: Sequence[str] = ()) -> Any:
    """Build a plugin from its options, strictly checked.

    path  where the options stand in the recipe; problems carry it
    core  keys beside the options that belong to the core (only for suggestions)
    Raises RecipeError with every mistake, also what `__post_init__` refuses.
    """
    try:
        model = options_model(cls)
    except RecipeError as error:
        raise RecipeError([dataclasses.replace(problem, path=path) for problem in error.problems]) from error
    names = [*fields_of(cls), *core]
    try:
        checked = model.model_validate_json(dump(dict(options)))
    except ValidationError as error:
        defaults = {name: field.default for name, field in fields_of(cls).items()}
        raise RecipeError(
            problems(
                error,
                options,
                path,
                lambda place: [] if place else names,
                lambda place: defaults.get(str(place[0])) if len(place) == 1 else None,
            )
        ) from error
    aliases = {key: field.alias or key for key, field in model.model_fields.items()}
    try:
        return cls(**{aliases[key]: getattr(checked, key) for key in checked.model_fields_set})
    except RecipeError:
        raise
    except Exception as error:
        raise RecipeError([_refusal(cls, error, options, path)]) from error


def _refusal(cls: type, error: Exception, options: Mapping[str, Any], path: Key) -> Problem:
    """Turn what a plugin's constructor raised into a problem at the option that the message names."""
    what = str(error).strip() or type(error).__name__
    if not isinstance(error, ValueError | NeoplugError):
        what = f"{cls.__qualname__} cannot be built: {type(error).__name__}: {what}"
    field = named(what, options)
    return Problem(what, path=(*path, field) if field else path)


def named(message: str, names: Iterable[str]) -> str | None:
    """Return the one of `names` that `message` names first as a whole word."""
    places = {name: re.search(rf"(?<![\w]){re.escape(name)}(?![\w])", message) for name in names if name}
    found = {name: match.start() for name, match in places.items() if match}
    return min(found, key=lambda name: (found[name], -len(name))) if found else None


def problems(
    error: ValidationError,
    values: Any,
    path: Key,
    names: "typing.Callable[[Key], Sequence[str]]",
    default: "typing.Callable[[Key], Any]",
) -> list[Problem]:
    """Turn pydantic's errors about `values` (which stand at `path`) into problems, one for each place.

    names    the keys that are known at a place below `path`, for suggestions
    default  the default of a key at a place below `path`, or None
    """
    grouped: dict[Key, list[Any]] = {}
    for detail in error.errors(include_url=False):
        grouped.setdefault(_place(detail, values), []).append(detail)
    return [
        _problem(details, place, path, names, default)
        for place, details in grouped.items()
        if not any(_is_other_branch(details, place, other) for other in grouped)
    ]


def _is_other_branch(details: list[Any], place: Key, other: Key) -> bool:
    """Say whether these are branches of a union that did not fit; what is wrong lies inside of one that did."""
    return other != place and other[: len(place)] == place and all(len(d["loc"]) > len(place) for d in details)


def _place(detail: Any, values: Any) -> Key:
    """Drop from pydantic's location what is no key of the data: the branch of a union, `[key]`."""
    place: list[str | int] = []
    here = values
    for part in detail["loc"]:
        known = isinstance(here, Mapping) and part in here
        listed = isinstance(here, list | tuple) and isinstance(part, int) and part < len(here)
        if known or listed:
            place.append(part)
            here = here[part]
        elif detail["type"] == "missing" and part == detail["loc"][-1]:
            place.append(part)
    return tuple(place)


def _problem(
    details: list[Any],
    place: Key,
    path: Key,
    names: "typing.Callable[[Key], Sequence[str]]",
    default: "typing.Callable[[Key], Any]",
) -> Problem:
    kinds = {detail["type"] for detail in details}
    first, full = details[0], path + place
    key = _label(full)
    if kinds == {"missing"}:
        return Problem(f"`{key}` is missing", "it has no default", path=full)
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return unknown_key(names(place[:-1]), full)
    if first["loc"][-1:] == ("[key]",):
        return unknown_key(_literals(first), full)
    if kinds == {"value_error"}:
        return Problem(str(first["ctx"]["error"]), path=full)
    expected = list(dict.fromkeys(_expected(detail) for detail in details))
    if "a number" in expected:
        expected = [words for words in expected if words != "a whole number"]
    close = did_you_mean(str(first["input"]), [word for detail in details for word in _literals(detail)])
    what = f"`{key}` is {show(first['input'])}, but must be {' or '.join(expected)}{close}"
    number = isinstance(first["input"], bool) and any("number" in words for words in expected)
    literal = any(_literals(detail) for detail in details)  # its values are named already
    fix = "" if literal else instead(first["input"], expected, default(place))
    return Problem(what, NO_NUMBER if number else "", fix, full)


def _label(path: Key) -> str:
    """Name a value by its key, an item of a list by the list's: layers[1]."""
    keys = [number for number, part in enumerate(path) if isinstance(part, str)]
    return f"{path[keys[-1]]}{''.join(f'[{part}]' for part in path[keys[-1] + 1 :])}" if keys else "recipe"


def unknown_key(known: Sequence[str], path: Key) -> Problem:
    """Say that the key at `path` is none of those known there."""
    fix = f"the keys here are {', '.join(known)}" if known else "remove it"
    return Problem(f"unknown key `{path[-1]}`{did_you_mean(str(path[-1]), known)}", fix=fix, path=path)


def _literals(detail: Any) -> list[str]:
    return re.findall(r"'([^']*)'", detail.get("ctx", {}).get("expected", "")) if "literal" in detail["type"] else []


def _expected(detail: Any) -> str:
    """Say what a value must be, in words."""
    kind, context = detail["type"], detail.get("ctx") or {}
    if kind == "literal_error":
        return f"one of {', '.join(_literals(detail))}" if len(_literals(detail)) > 1 else context["expected"]
    if kind == "finite_number":
        return "a finite number"
    for word, limit in _LIMITS.items():
        if word in context:
            bound = context[word]
            return f"{limit} {int(bound) if bound == int(bound) else bound}"
    if kind == "string_too_short":
        return "text that is not empty"
    if kind == "too_short":
        return "one that is not empty"
    if kind == "value_error":
        return str(context["error"])
    name = kind.removesuffix("_type").removesuffix("_parsing")
    return _NAMES.get(name) or _NAMES.get(kind) or f"something else: {detail['msg'].lower()}"
