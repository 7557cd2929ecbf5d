"""Fixes for values of the wrong type: what to write instead, where that is certain."""

import json
from collections.abc import Mapping, Sequence
from math import ceil, floor, isfinite
from typing import Any

from pydantic import TypeAdapter, ValidationError

NO_NUMBER = "true and false are not numbers"

# pydantic's lenient mode converts "8", 8.0, "1_000" and "yes".
_LENIENT: dict[str, TypeAdapter[Any]] = {
    "a whole number": TypeAdapter(int),
    "a number": TypeAdapter(float),
    "true or false": TypeAdapter(bool),
}


def as_written(value: Any) -> str:
    """Return a value as YAML for a message, text in quotes; "a map" or "a list" for those."""
    if isinstance(value, Mapping):
        return "a map"
    if isinstance(value, list | tuple):
        return "a list"
    return json.dumps(value, ensure_ascii=False) if value is None or isinstance(value, bool | str) else str(value)


def suggest_fix(value: Any, expected: Sequence[str], default: Any = None) -> str:
    """Return the fix for a wrong value; empty where none is certain.

    expected  what it must be: one or more of "a whole number", "a list", ...
    default   the default of its key, if any
    """
    is_scalar = isinstance(value, bool | int | float | str)
    for words in [words for words in _LENIENT if words in expected and is_scalar]:
        if fix := _lenient(value, words):
            return fix
    if "a list" in expected and is_scalar:
        return f"write [{value if isinstance(value, str) and value.isidentifier() else as_written(value)}]"
    if "a map" in expected and value is not None:
        return "a map is written {key: value}"
    if "text" in expected and is_scalar and not isinstance(value, str):
        return f'put it in quotes: "{as_written(value)}"'
    return (
        f"leave it out for the default, {as_written(default)}" if isinstance(default, bool | int | float | str) else ""
    )


def _lenient(value: Any, words: str) -> str:
    """Return the fix "write X", where `value` converts to `words`, a type of `_LENIENT`; else an empty string."""
    if isinstance(value, bool) and words != "true or false":
        return ""
    if isinstance(value, float) and words == "a whole number" and isfinite(value) and value != int(value):
        return f"write {floor(value)} or {ceil(value)}"
    try:
        meant = _LENIENT[words].validate_python(value)
    except ValidationError:
        return ""
    if isinstance(meant, bool):
        return f"write {as_written(meant)}"
    if not abs(meant) <= 2**53:  # beyond it, not all whole numbers are floats; NaN is not a number to write
        return ""
    if isinstance(value, str) and _is_number(value, type(meant)):
        return f"write {value} without quotes"
    return f"write {int(meant) if meant == int(meant) else meant}"


def _is_number(text: str, kind: type) -> bool:
    """Return whether `text` without quotes is read as an integer or as `kind`."""
    try:
        return isinstance(json.loads(text), kind | int)
    except ValueError:
        return False
