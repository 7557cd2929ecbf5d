"""Answers of hooks as plain values: numbers of torch and numpy are read, anything that JSON cannot hold is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Refusal(Exception):
    """An answer that breaks the rule of its hook, or a hook that changed what it must not change.

    what  what the plugin did: "with shape [3], ..." of an answer, else a verb as in "wrote into `labels`"
    why   empty: that of the rule
    fix   empty: that of the rule
    """

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what, self.why, self.fix = what, why, fix

    def sentence(self, plugin: str, hook: str) -> str:
        """Return what the plugin did, as a sentence without a full stop."""
        if self.what.startswith("with "):
            return f"the plugin `{plugin}` answered `{hook}` {self.what}"
        return f"the plugin `{plugin}` in `{hook}` {self.what}"

    @classmethod
    def of(cls, answer: Any, expected: str, name: str = "", kind: str = "value") -> Refusal:
        """Return the refusal of an answer, or of the part of it that has a name; `expected` continues "where"."""
        found = f"the {kind} `{name}`, which is {describe(answer)}" if name else describe(answer)
        return cls(f"with {found}, where {expected}")


def describe(value: Any) -> str:
    """Return what kind of value this is, as "a list" or "shape [3]"."""
    if value is None:
        return "None"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        kind = str(value.dtype).removeprefix("torch.")
        device = f" on {value.device}" if hasattr(value, "device") and str(value.device) != "cpu" else ""
        return f"shape {list(value.shape)} of {kind}{device}"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def number(value: Any) -> bool | int | float | None:
    """Return a number of Python, numpy or torch (of no dimension) as Python's; None for anything else."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return float(value) if isinstance(value, float) else int(value)
    return None


def plain(value: Any, place: tuple[str, ...] = ()) -> Any:
    """Return a copy of a value as JSON holds it: tuples become lists, keys text, numbers those of Python.

    place  the names that lead to the value

    Raises:
        Refusal: JSON cannot hold the value.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return str(value)
    if (read := number(value)) is not None:
        return read
    if len(place) > MAX_DEPTH:
        raise Refusal(f"with a value that has more than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        return {_key(key, place): plain(item, (*place, str(key))) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, (*place, str(index))) for index, item in enumerate(value)]
    raise Refusal.of(value, "a number, text, a list or a map is expected", ".".join(place))


MAX_DEPTH = 50  # of maps and lists in each other; one that contains itself has no end


def _key(key: Any, place: tuple[str, ...]) -> str:
    """Return a key as JSON writes it. Raises Refusal for one that is neither text nor a whole number."""
    read = key if isinstance(key, str) else number(key)
    if not isinstance(read, str | int) or isinstance(read, bool):
        raise Refusal.of(key, "text is expected as the key of a map", ".".join(place), "map")
    return str(read)
