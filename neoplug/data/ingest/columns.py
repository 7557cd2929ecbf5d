"""What the columns of a row mean: four kinds of rows, recognised by name or mapped by the recipe.

    messages (+ tools)              a conversation, a list of {role, content}, or ShareGPT's `conversations` of
                                    {from, value}; what the assistant may call
    prompt + completion             two texts
    instruction (+ input) + output  Alpaca's three texts
    text                            one text

The rows of a source may be of several kinds. A row that has what its kind needs becomes a `Content`; of a broken one
only the reason is kept, to be counted.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from neoplug.data.ingest.readers import Row
from neoplug.errors import Problem, RecipeError, did_you_mean
from neoplug.files import content_hash

Kind = Literal["messages", "completion", "alpaca", "text"]

NEEDED: dict[Kind, tuple[str, ...]] = {
    "messages": ("messages",),
    "completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
OPTIONAL: dict[Kind, tuple[str, ...]] = {"messages": ("tools",), "completion": (), "alpaca": ("input",), "text": ()}
KNOWN = tuple(name for kind in NEEDED for name in (*NEEDED[kind], *OPTIONAL[kind]))
MAY_BE_EMPTY = ("prompt", "input")
ALSO = {"messages": "conversations"}  # what a column is also called, recognised without a map
SPEAKERS = {"human": "user", "gpt": "assistant"}  # of ShareGPT; others have their roles' own names


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
    """What a source's columns can mean: of each kind of row, the source's name for each of our columns.

    kinds  the first is that of the source as a whole
    seen   the source's columns that this kind uses, as far as they were there
    """

    kinds: Mapping[Kind, Mapping[str, str]]
    seen: Sequence[str]

    @property
    def main(self) -> Kind:
        """Return the kind of a row that shows no other."""
        return next(iter(self.kinds))

    def content(self, row: Row, number: int) -> Content | str:
        """Return what the row holds, or why it is broken."""
        values: dict[str, Any] = {}
        kind = self._kind_of(row)
        for ours, theirs in self.kinds[kind].items():
            value = READ[ours](row.get(theirs)) if ours in READ else row.get(theirs)
            if value is None and ours in OPTIONAL[kind]:
                continue
            if reason := _fault(value, ours):
                return reason
            values[ours] = _plain(value) if ours == "messages" else _without_none(value)
        if kind == "alpaca" and not values.get("input", "").strip():
            values.pop("input", None)
        return Content(number, kind, values, content_hash(values))

    def _kind_of(self, row: Row) -> Kind:
        """Return the first kind that the row has all columns of, filled; else the first that it has any of.

        A `text` beside columns of another kind is no row of its own: it is that row written out.
        """
        filled = {
            kind: [row[theirs[name]] is not None for name in NEEDED[kind]]
            for kind, theirs in self.kinds.items()
            if all(theirs[name] in row for name in NEEDED[kind])
        }
        begun = [kind for kind, parts in filled.items() if any(parts)]
        whole = [kind for kind in begun if all(filled[kind]) and (kind != "text" or kind == begun[0])]
        return next(iter([*whole, *begun]), self.main)


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
    kinds: dict[Kind, dict[str, str]] = {}
    for kind, needed in NEEDED.items():
        used = (*needed, *OPTIONAL[kind])
        ours = [name for name in used if name in mapping or name not in mapping.values()]
        theirs = {name: _called(name, names, mapping) for name in ours}
        if all(name in used for name in mapping) and all(name in theirs for name in needed):
            kinds[kind] = theirs
    main = [kind for kind, theirs in kinds.items() if all(theirs[name] in names for name in NEEDED[kind])]
    if not main:
        raise RecipeError([_unrecognised(names, mapping)])
    return Columns({main[0]: kinds[main[0]]} | kinds, [name for name in kinds[main[0]].values() if name in names])


def _called(ours: str, names: Sequence[str], mapping: Mapping[Any, str]) -> str:
    """Return the source's name for a column of ours."""
    also = ALSO.get(ours, ours)
    return mapping.get(ours, also if also in names and ours not in names else ours)


def names_of(rows: Iterable[Row]) -> list[str]:
    """Return every column that any of the rows has, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _unrecognised(names: Sequence[str], mapping: Mapping[Any, str]) -> Problem:
    needed = [" + ".join(columns) for columns in NEEDED.values()]
    strange = [name for name in names if name not in KNOWN and name not in mapping.values()]
    near = [f"`{close}`{did_you_mean(close, KNOWN)}" for close in strange if did_you_mean(close, KNOWN)]
    mapped = f" with {' and '.join(f'`{ours}`' for ours in mapping)}" if mapping else ""
    hints = f"; {', '.join(part.replace('; ', ': ') for part in near)}" if near else ""
    return Problem(
        f"the columns fit no kind of row{mapped}{hints}",
        why=f"{_listed(names)}; a row is {', or '.join(needed)}",
        fix="map them, as in columns: {prompt: question, completion: answer}",
        path=("data", "columns"),
    )


def _listed(names: Sequence[str]) -> str:
    return f"the columns found are {', '.join(names)}" if names else "no columns were found"


def _listed_tools(value: Any) -> Any:
    """Return tools that are written out as JSON, as they are where each has other keys; blank is none."""
    try:
        return json.loads(value or "null") if isinstance(value, str) else value
    except ValueError:
        return value


def _roles_and_contents(value: Any) -> Any:
    """Return messages with the keys that templates read, ShareGPT's `from` and `value` too."""
    if not isinstance(value, list):
        return value
    return [
        {"role": SPEAKERS.get(message["from"], message["from"]), "content": message.get("value")}
        if isinstance(message, dict) and isinstance(message.get("from"), str)
        else message
        for message in value
    ]


READ = {"tools": _listed_tools, "messages": _roles_and_contents}  # columns that are written in more ways than one


def _fault(value: Any, name: str) -> str:
    """Say why a column's value is of no use; nothing where it is."""
    if name == "tools":
        return "" if isinstance(value, list) else f"tools is {type(value).__name__}, not a list"
    return _messages_fault(value) if name == "messages" else _text_fault(value, name)


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
        content = message.get("content")
        if content is None and not (message["role"] == "assistant" and message.get("tool_calls")):
            return "a message without content"
        if not (content is None or isinstance(content, str) or _is_parts(content)):
            return "a message whose content is no text"
        if message["role"] == "assistant" and not any(value for name, value in message.items() if name != "role"):
            return "an empty answer"
    return ""


def _plain(messages: Any) -> list[dict[str, Any]]:
    """Return messages without empty keys, which parquet gives to all of them, and a content in parts as one text."""
    return [_without_none({**message, "content": _joined(message.get("content"))}) for message in messages]


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list) else value


def _joined(content: Any) -> Any:
    return "".join(part["text"] for part in content) if _is_parts(content) else content


def _is_parts(content: Any) -> bool:
    """Tell whether a message's content comes in parts, each of them text."""
    return (
        isinstance(content, list)
        and bool(content)
        and all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in content)
    )
