"""Strict validation of plugin options against the types of their fields; pydantic's errors become `Problem`s.

Neither `true` nor text is a number, 8.0 is no integer, NaN and infinity are invalid; 8 is a valid float.
Values are validated as JSON, because pydantic's strict mode then still makes tuples from lists and paths from text.
"""

import dataclasses
import inspect
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pydantic import BaseModel, Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from neoplug.errors import (
    ImmediateStop,
    NeoplugError,
    OptionError,
    Problem,
    RecipeError,
    did_you_mean,
    innermost,
    of_package,
)
from neoplug.errors import Path as Key
from neoplug.registry.class_source import source_mark
from neoplug.registry.per_class import per_class
from neoplug.registry.strict_model import StrictModel
from neoplug.registry.suggestions import NO_NUMBER, as_written, suggest_fix

T = TypeVar("T")
KeysAt = Callable[[Key], Sequence[str]]
FieldAt = Callable[[Key], FieldInfo | None]
CodePath = Annotated[pathlib.Path, "names code"]  # of an option: a file or folder whose code the plugin runs

_NAMES = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "list": "a list",
    "dict": "a map", "model": "a map", "dataclass": "a map", "tuple": "a list", "set": "a list",
    "none_required": "null", "finite_number": "a finite number", "string_too_short": "text that is not empty",
    "too_short": "one that is not empty", "is_instance_of": "something that a recipe cannot express",
}  # fmt: skip
_LIMITS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def fields_of(cls: type) -> dict[str, "dataclasses.Field[Any]"]:
    """Return the options of a plugin class: the fields that its constructor takes."""
    return {field.name: field for field in dataclasses.fields(cls) if field.init}


@per_class
def path_fields(cls: type) -> set[str]:
    """Return the names of the options whose type contains `pathlib.Path`: they name existing files or folders."""
    hints = get_type_hints(cls)
    return {name for name in fields_of(cls) if pathlib.Path in _nested_types(hints[name])}


@per_class
def code_fields(cls: type) -> set[str]:
    """Return the names of the options whose type contains `CodePath`; none where the types cannot be read."""
    try:
        hints = get_type_hints(cls, include_extras=True)
    except Exception:  # building the plugin reports it
        return set()
    return {name for name in fields_of(cls) if CodePath in _nested_types(hints[name])}


def _nested_types(hint: Any) -> list[Any]:
    """Return a type and all its type arguments, recursively: members of a union, items of a list, keys of a map."""
    return [hint, *(inner for part in get_args(hint) for inner in _nested_types(part))]


@per_class
def options_model(cls: type) -> type[BaseModel]:
    """Return a pydantic model that validates a plugin's options; the options' names are its aliases.

    The plugin's class is not changed.
    Raises RecipeError, which names the option and its line, where a type cannot be expressed in a recipe.
    """
    options = fields_of(cls)
    try:
        return _model_of(cls, options)
    except Exception as error:
        alone = ((name, _type_error(cls, name)) for name in options)
        name, reason = next(((name, reason) for name, reason in alone if reason), ("", error))
        first_line = next(iter(str(reason).splitlines()), "")
        why = f"{type(reason).__name__}: {first_line.partition('. Set ')[0]}"  # pydantic goes on with advice on itself
        option = f"the option `{name}`" if name else "the options"
        place = f" ({found})" if (found := definition_of_option(cls, name)) else ""
        what = f"{option} of {cls.__qualname__} cannot be read from a recipe{place}"
        fix = "annotate it with a type of numbers, text, lists, maps, dataclasses or `Literal`, or `field(init=False)`"
        raise RecipeError([Problem(what, why, fix)]) from error


def _model_of(cls: type, options: "Mapping[str, dataclasses.Field[Any]]") -> type[BaseModel]:
    hints = get_type_hints(cls, include_extras=True)
    fields: dict[str, Any] = {
        f"option_{number}": (hints[name], Field(alias=name, title=name, **_default(field)))
        for number, (name, field) in enumerate(options.items())
    }
    return create_model(cls.__name__, __base__=StrictModel, **fields)


def _type_error(cls: type, name: str) -> Exception | None:
    """Return why the type of one option cannot be checked; None where it can."""
    owner = _owner(cls, name)
    try:
        only = type(cls.__name__, (), {"__annotations__": {name: inspect.get_annotations(owner)[name]}})
        only.__module__ = owner.__module__  # where the names of types are looked up
        _model_of(only, {name: fields_of(cls)[name]})
    except Exception as error:
        return error
    return None


def _owner(cls: type, name: str) -> type:
    """Return the class of the bases that annotates an option."""
    return next((base for base in cls.__mro__ if name in inspect.get_annotations(base)), cls)


def definition_of_option(cls: type, name: str) -> str:
    """Return `file:line` of an option's annotation or value in its class; an empty text where there is no source."""
    owner = next((base for base in cls.__mro__ if name in inspect.get_annotations(base) or name in vars(base)), cls)
    try:
        lines, first = inspect.getsourcelines(owner)
        file = inspect.getsourcefile(owner)
    except (OSError, TypeError):
        return ""
    pattern = re.compile(rf"\s+{re.escape(name)}\s*[:=]")
    return next((f"{file}:{first + number}" for number, line in enumerate(lines) if pattern.match(line)), "")


def defaults(cls: type) -> dict[str, Any]:
    """Return the defaults of a plugin's options, as plain values; without None and those that a recipe cannot express.

    Raises RecipeError where a type cannot be expressed in a recipe.
    """
    found = {}
    for field in options_model(cls).model_fields.values():
        value = field.get_default(call_default_factory=True)
        with suppress(TypeError, ValueError):  # of json: a required option, or no plain value
            if value is not None:
                found[str(field.alias)] = json.loads(json.dumps(value, allow_nan=False))
    return found


def _default(field: "dataclasses.Field[Any]") -> dict[str, Any]:
    given = {"default": field.default, "default_factory": field.default_factory}
    return {name: value for name, value in given.items() if value is not dataclasses.MISSING}


def build(cls: type[T], options: Mapping[str, Any], *, path: Key = (), core: Sequence[str] = ()) -> T:
    """Build a plugin from its options, which are strictly validated.

    path  the path of the options in the recipe, which the problems get
    core  other valid keys of the same map, that are not options (only for suggestions)
    Raises RecipeError with every mistake; where there is none, with the exception of the constructor.
    """
    try:
        model = options_model(cls)
    except RecipeError as error:
        raise RecipeError([dataclasses.replace(problem, path=path) for problem in error.problems]) from error
    fields = {field.alias or "": field for field in model.model_fields.values()}
    try:
        checked = model.model_validate_json(json.dumps(dict(options)))
    except ValidationError as error:
        problems = type_problems(
            error, options, path,
            lambda place: literals(fields[str(place[0])]) if place else [*fields, *core],
            lambda place: fields.get(str(place[0])) if len(place) == 1 else None,
        )  # fmt: skip
        raise RecipeError([_without_annotation(cls, problem, path) for problem in problems]) from error
    given = {field.alias or "": getattr(checked, name) for name, field in model.model_fields.items()
             if name in checked.model_fields_set}  # fmt: skip
    try:
        return cls(**given)
    except RecipeError:
        raise
    except (KeyboardInterrupt, ImmediateStop):
        raise
    except BaseException as error:
        raise RecipeError([_constructor_problem(cls, error, options, path)]) from error


def _without_annotation(cls: type, problem: Problem, path: Key) -> Problem:
    """Return the problem; in place of an unknown key, that an attribute of the class is no option without a type."""
    name = str(problem.path[-1]) if problem.path else ""
    is_option = isinstance(problem, UnknownKey) and problem.path[:-1] == path and not name.startswith("_")
    value = inspect.getattr_static(cls, name, None)
    annotated = any(name in inspect.get_annotations(base) for base in cls.__mro__)
    if not is_option or value is None or annotated or callable(value) or hasattr(value, "__get__"):
        return problem
    place = f" ({found})" if (found := definition_of_option(cls, name)) else ""
    what = f"`{name}` of {cls.__qualname__} has no annotation{place}"
    why = "a dataclass makes options of annotated names only"
    return Problem(what, why, f"write `{name}: {type(value).__name__} = ...` in the class", problem.path)


def _constructor_problem(cls: type, error: BaseException, options: Mapping[str, Any], path: Key) -> Problem:
    """Return the problem of an exception in a plugin's constructor, at the option that it names.

    A ValueError or NeoplugError that is raised on purpose rejects the options, with a message to the user; any other is
    a bug of the plugin, whose file and line are named.
    """
    what = str(error).strip() or type(error).__name__
    file, line, text = innermost(error)
    if not isinstance(error, ValueError | NeoplugError) or (text and not re.search(r"\braise\b", text)):
        mark = source_mark(cls, "") if file == __file__ else None  # the call of the constructor failed
        place = f"{mark.file}:{mark.line}" if mark else f"{file}:{line}"
        owner = of_package(cls.__module__)
        what = f"{cls.__qualname__} cannot be built: {type(error).__name__}: {what} ({place}){owner}"
    option = error.option if isinstance(error, OptionError) else first_named(what, options)
    return Problem(what, path=(*path, option) if option else path)


def first_named(message: str, names: Iterable[str]) -> str | None:
    """Return the first whole word of `message` that is one of `names`."""
    words = "".join(letter if letter.isidentifier() or letter.isdigit() else " " for letter in message).split()
    return next((word for word in words if word in names), None)


def type_problems(error: ValidationError, values: Any, path: Key, keys_at: KeysAt, field_at: FieldAt) -> list[Problem]:
    """Return the problems of a failed validation, one for each wrong value or key.

    values    the validated map, which is at `path` in the recipe
    keys_at   place (a path in `values`) -> the keys that may be there
    field_at  place -> the type and default of the value there, or None
    """
    grouped: dict[Key, list[Any]] = {}
    for detail in error.errors(include_url=False):
        grouped.setdefault(_place(detail, values), []).append(detail)
    parents = {place[:length] for place in grouped for length in range(len(place))}
    return [
        _problem(details, place, path, keys_at, field_at)
        for place, details in grouped.items()
        if not (place in parents and _is_of_other_members(details, place))
    ]


def _is_of_other_members(details: list[Any], place: Key) -> bool:
    """Return whether errors at a place with mistakes inside of it are those of a union's other members."""
    return all(len(detail["loc"]) > len(place) for detail in details)


def _place(detail: Any, values: Any) -> Key:
    """Return pydantic's location of an error without parts that are no keys of `values`: members of unions, `[key]`."""
    place: list[str | int] = []
    here = values
    for part in detail["loc"]:
        is_key = isinstance(here, Mapping) and part in here
        is_index = isinstance(here, list | tuple) and isinstance(part, int) and part < len(here)
        if is_key or is_index:
            place.append(part)
            here = here[part]
        elif detail["type"] == "missing" and part == detail["loc"][-1]:
            place.append(part)
    return tuple(place)


def _problem(details: list[Any], place: Key, path: Key, keys_at: KeysAt, field_at: FieldAt) -> Problem:
    """Return one problem for pydantic's errors at one place (several for a union)."""
    first, full = details[0], path + place
    kind, value = first["type"], first["input"]
    if kind == "missing":
        return Problem(f"`{_label(full)}` is missing", "it has no default", path=full)
    if kind in ("extra_forbidden", "unexpected_keyword_argument") or first["loc"][-1:] == ("[key]",):
        return unknown_key(keys_at(place[:-1]), full)
    if all(detail["type"] == "value_error" for detail in details):
        return Problem(str(first["ctx"]["error"]), path=full)
    field = field_at(place)
    choices = literals(field)
    expected = list(dict.fromkeys(_expected(detail, field) for detail in details))
    if "a number" in expected:
        expected = [words for words in expected if words != "a whole number"]
    close = did_you_mean(str(value), choices)
    what = f"`{_label(full)}` is {as_written(value)}, but must be {' or '.join(expected)}{close}"
    why = NO_NUMBER if isinstance(value, bool) and any("number" in words for words in expected) else ""
    may_be_number = isinstance(value, int | float) and any(detail["type"] != "literal_error" for detail in details)
    fix = "" if choices and not may_be_number else suggest_fix(value, expected, field.default if field else None)
    return Problem(what, why, fix, full)


def literals(field: FieldInfo | None) -> list[str]:
    """Return the values of the `Literal`s and enumerations in a field's type, as text."""
    parts = _nested_types(field.annotation) if field else []
    named = [value for part in parts if get_origin(part) is Literal for value in get_args(part)]
    named += [member.value for part in parts if inspect.isclass(part) and issubclass(part, Enum) for member in part]
    return list(dict.fromkeys(map(str, named)))


def _label(path: Key) -> str:
    """Return a value's name in messages: its key; for an item of a list the list's key and the index, as layers[1]."""
    keys = [number for number, part in enumerate(path) if isinstance(part, str)]
    return f"{path[keys[-1]]}{''.join(f'[{part}]' for part in path[keys[-1] + 1 :])}" if keys else "recipe"


class UnknownKey(Problem):
    """A key that is none of those known at its place."""


def unknown_key(known: Sequence[str], path: Key) -> UnknownKey:
    """Return the problem that the key at `path` is none of `known`."""
    fix = f"the keys here are {', '.join(known)}" if known else "remove it"
    return UnknownKey(f"unknown key `{path[-1]}`{did_you_mean(str(path[-1]), known)}", fix=fix, path=path)


def _expected(detail: Any, field: FieldInfo | None) -> str:
    """Return what the value must be, as "a whole number" or "at least 1"."""
    kind, context = detail["type"], detail.get("ctx") or {}
    if kind in ("literal_error", "enum"):
        choices = literals(field)
        return f"one of {', '.join(choices)}" if len(choices) > 1 else str(context["expected"])
    if kind == "string_pattern_mismatch" and field and field.examples:
        return f"{', '.join(map(str, field.examples))} or the like"
    if kind == "value_error":
        return str(context["error"])
    for word, limit in _LIMITS.items():
        if word in context:
            return f"{limit} {context[word] if isinstance(context[word], int) else format(context[word], 'g')}"
    name = kind.removesuffix("_type").removesuffix("_parsing")
    return _NAMES.get(name) or f"something else: {detail['msg'].lower()}"
