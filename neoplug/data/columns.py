"""What the columns of a source mean: four kinds of rows, recognised by name or mapped by the recipe.

    messages                        a conversation, a list of {role, content}
    prompt + completion             two texts
    instruction (+ input) + output  Alpaca's three texts
    text                            one text

A row that has what its kind needs becomes a `Content`; of a broken one only the reason is kept, to be counted.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from neoplug.data.readers import Row
from neoplug.errors import Problem, RecipeError, did_you_mean
from neoplug.files import content_hash

Kind = Literal["messages", "completion", "alpaca", "text"]

NEEDED: dict[Kind, tuple[str, ...]] = {
    "messages": ("messages",),
    "completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
OPTIONAL: dict[Kind, tuple[str, ...]] = {"messages": (), "completion": (), "alpaca": ("input",), "text": ()}
KNOWN = tuple(name for kind in NEEDED for name in (*NEEDED[kind], *OPTIONAL[kind]))
MAY_BE_EMPTY = ("prompt", "input")


@dataclass(frozen=True)
class Content:
    """What of a row is trained on. Two rows of equal `values` are identical, whatever else their columns say.

    number  of the row in its source, from 0
    values  by our column names; messages without their empty keys
    digest  sha256 of the values, in hexadecimal: places the row in or out of `held_out`
    """

    number: int
    kind: Kind
    values: Mapping[str, Any]
    digest: str


@dataclass(frozen=True)
class Columns:
    """The kind of a source's rows, and the source's name for each of our columns."""

    kind: Kind
    theirs: Mapping[str, str]

    def content(self, row: Row, number: int) -> Content | str:
        """Return what the row holds, or why it is broken."""
        values: dict[str, Any] = {}
        for ours, theirs in self.theirs.items():
            value = row.get(theirs)
            if value is None and ours == "input":
                continue
            if reason := _messages_fault(value) if ours == "messages" else _text_fault(value, ours):
                return reason
            values[ours] = _without_none(value) if ours == "messages" else value
        if self.kind == "alpaca" and not values.get("input", "").strip():
            values.pop("input", None)
        return Content(number, self.kind, values, content_hash(values))


def recognise(names: Sequence[str], mapping: Mapping[Any, str]) -> Columns:
    """Say what the columns `names` mean, after the recipe's `columns` {ours: theirs}.

    raises  RecipeError that lists the columns found, where they fit no kind of row or the map names what is not there
    """
    problems = [
        Problem(f"{ours} is no column that neoplug knows{did_you_mean(ours, KNOWN)}", path=("data", "columns", ours))
        for ours in mapping
        if ours not in KNOWN
    ]
    problems += [
        Problem(f"no column `{theirs}`{did_you_mean(theirs, names)}", _listed(names), path=("data", "columns", ours))
        for ours, theirs in mapping.items()
        if theirs not in names
    ]
    if problems:
        raise RecipeError(problems)
    available = {name: name for name in names if name in KNOWN and name not in mapping.values()} | dict(mapping)
    for kind in NEEDED:
        used = (*NEEDED[kind], *OPTIONAL[kind])
        if all(name in available for name in NEEDED[kind]) and all(ours in used for ours in mapping):
            return Columns(kind, {name: available[name] for name in used if name in available})
    raise RecipeError([_unrecognised(names)])


def names_of(rows: Iterable[Row]) -> list[str]:
    """Return every column that any of the rows has, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _unrecognised(names: Sequence[str]) -> Problem:
    needed = [" + ".join(columns) for columns in NEEDED.values()]
    near = [f"`{close}`{did_you_mean(close, KNOWN)}" for close in names if did_you_mean(close, KNOWN)]
    return Problem(
        f"the columns fit no kind of row{'; ' + ', '.join(part.replace('; ', ': ') for part in near) if near else ''}",
        why=f"{_listed(names)}; a row is {', or '.join(needed)}",
        fix="map them, as in columns: {prompt: question, completion: answer}",
        path=("data", "columns"),
    )


def _listed(names: Sequence[str]) -> str:
    return f"the columns found are {', '.join(names)}" if names else "no columns were found"


def _text_fault(value: Any, name: str) -> str:
    if value is None:
        return f"no {name}"
    if not isinstance(value, str):
        return f"{name} is {type(value).__name__}, not text"
    return "" if value.strip() or name in MAY_BE_EMPTY else f"empty {name}"


def _messages_fault(value: Any) -> str:
    if not isinstance(value, list):
        return "no messages" if value is None else f"messages is {type(value).__name__}, not a list"
    if not value:
        return "no messages"
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return "a message without a role"
        if message.get("content") is None and not (message["role"] == "assistant" and message.get("tool_calls")):
            return "a message without content"
    return ""


def _without_none(value: Any) -> Any:
    """Drop empty keys: parquet gives every message the keys of all, filled with None."""
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list) else value
