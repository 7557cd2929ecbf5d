"""What to write instead of a value that does not fit: short, and only where it is sure."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from math import ceil, floor, isfinite
from typing import Any

_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS = {"on": "true", "yes": "true", "y": "true", "off": "false", "no": "false", "n": "false"}
NO_NUMBER = "true and false are no numbers"


def show(value: Any) -> str:
    """Write a value as a recipe does; text in quotes, so that "8" is not taken for 8."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, Mapping):
        return "a map"
    if isinstance(value, list | tuple):
        return "a list"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)


def instead(value: Any, expected: Sequence[str], default: Any = None) -> str:
    """Return the fix for a value that must be `expected` (in words, as "a whole number"); empty where none is sure.

    default  of its key, if it has one that a recipe can say in a word
    """
    for words, rule in _RULES.items():
        if words in expected and (fix := rule(value)):
            return fix
    return f"leave it out for the default, {show(default)}" if isinstance(default, bool | int | float | str) else ""


def _number(value: Any) -> str:
    number = _meant(value)
    if number is None or not isinstance(value, str):
        return ""
    return f"write {value} without quotes" if _NUMBER.fullmatch(value) else f"write {number}"


def _whole_number(value: Any) -> str:
    number = _meant(value)
    if number is None:
        return ""
    if number != int(number):
        return f"write {floor(number)} or {ceil(number)}"
    return f"write {value} without quotes" if isinstance(value, str) and value.isdigit() else f"write {int(number)}"


def _meant(value: Any) -> float | int | None:
    """Return the number that a value, or a text of it, reads as: 1_000 and "8" too."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value.replace("_", "") if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        return None
    if not isfinite(number) or abs(number) > 2**53:  # beyond it, not all whole numbers are floats
        return None
    return int(number) if isinstance(value, str) and number == int(number) and "." not in value else number


def _switch(value: Any) -> str:
    words = {"true": "true", "false": "false", "1": "true", "0": "false", **_WORDS}
    word = words.get(str(value).lower()) if isinstance(value, int | str) else None
    return f"write {word}" if word else ""


def _text(value: Any) -> str:
    return f'put it in quotes: "{show(value)}"' if isinstance(value, bool | int | float) else ""


def _list(value: Any) -> str:
    return f"write [{value if _is_word(value) else show(value)}]" if isinstance(value, bool | int | float | str) else ""


def _map(value: Any) -> str:
    return "a map is written {key: value}" if value is not None else ""


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w./-]*", value) is not None


_RULES: dict[str, Callable[[Any], str]] = {
    "a whole number": _whole_number,
    "a number": _number,
    "true or false": _switch,
    "a list": _list,
    "a map": _map,
    "text": _text,
}
