"""The columns of a row: four kinds of rows, recognised by column names or mapped by the recipe.

    messages (+ tools)              a conversation, a list of {role, content}, or ShareGPT's `conversations` of
                                    {from, value}; `tools` are the functions that the assistant may call
    prompt + completion             two texts
    instruction (+ input) + output  Alpaca's three texts
    text                            one text

The rows of a source may be of several kinds. A row with all columns of its kind becomes a `Content`; for any other row,
the reason why it cannot be used is returned, to be counted.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from neoplug.data.ingest.values import Reason, Row
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
ALIASES = {"messages": "conversations"}  # neoplug's column name -> another name under which it is recognised
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}  # the other roles have the same names in both formats


@dataclass(frozen=True)
class Content:
    """The columns of a row that neoplug uses. Rows of equal `values` are identical, whatever their other columns.

    number  index of the row in its source
    values  neoplug's column name -> value; messages have no keys whose value is None
    digest  sha256 of the values, in hexadecimal: it decides whether the row is held out
    """

    number: int
    kind: Kind
    values: Mapping[str, Any]
    digest: str


@dataclass(frozen=True)
class Columns:
    """The mapping of a source's columns: for each kind of row, neoplug's column name -> the source's.

    kinds  the first is the main kind of the source
    used   the source's columns that belong to the main kind
    """

    kinds: Mapping[Kind, Mapping[str, str]]
    used: Sequence[str]

    @property
    def main(self) -> Kind:
        """Return the main kind: that of a row whose columns match no kind."""
        return next(iter(self.kinds))

    def content(self, row: Row, number: int) -> Content | Reason:
        """Return the content of the row, or the reason why it cannot be used."""
        values: dict[str, Any] = {}
        kind = self._kind_of(row)
        for column, source_column in self.kinds[kind].items():
            value = NORMALISE[column](row.get(source_column)) if column in NORMALISE else row.get(source_column)
            if value is None and column in OPTIONAL[kind]:
                continue
            if reason := _fault(value, column):
                return reason
            values[column] = _plain(value) if column == "messages" else _without_none(value)
        if kind == "alpaca" and not values.get("input", "").strip():
            values.pop("input", None)
        return Content(number, kind, values, content_hash(values))

    def _kind_of(self, row: Row) -> Kind:
        """Return the first kind whose columns all have a value in the row; else the first with any value.

        `text` is the kind of a row only if no column of another kind has a value: next to these, it usually is the same
        row, already formatted.
        """
        filled = {
            kind: [row[columns[name]] is not None for name in NEEDED[kind]]
            for kind, columns in self.kinds.items()
            if all(columns[name] in row for name in NEEDED[kind])
        }
        partial = [kind for kind, present in filled.items() if any(present)]
        complete = [kind for kind in partial if all(filled[kind]) and (kind != "text" or kind == partial[0])]
        return next(iter([*complete, *partial]), self.main)


def recognise(names: Sequence[str], mapping: Mapping[Any, str]) -> Columns:
    """Return the mapping of a source's columns.

    names    the source's columns
    mapping  the recipe's `columns`: neoplug's column name -> the source's
    raises   RecipeError that lists the source's columns, where these match no kind of row, or the recipe maps a column
             that the source does not have
    """
    problems = [
        Problem(f"{name} is not a column name of neoplug{did_you_mean(name, KNOWN)}", path=("data", "columns", name))
        for name in mapping
        if name not in KNOWN
    ]
    problems += [
        Problem(f"no column `{column}`{did_you_mean(column, names)}", _listed(names), path=("data", "columns", name))
        for name, column in mapping.items()
        if column not in names
    ]
    if problems:
        raise RecipeError(problems)
    kinds: dict[Kind, dict[str, str]] = {}
    for kind, needed in NEEDED.items():
        used = (*needed, *OPTIONAL[kind])
        usable = [name for name in used if name in mapping or name not in mapping.values()]
        columns = {name: _name_in_source(name, names, mapping) for name in usable}
        if all(name in used for name in mapping) and all(name in columns for name in needed):
            kinds[kind] = columns
    main = [kind for kind, columns in kinds.items() if all(columns[name] in names for name in NEEDED[kind])]
    if not main:
        raise RecipeError([_unrecognised(names, mapping)])
    return Columns({main[0]: kinds[main[0]]} | kinds, [name for name in kinds[main[0]].values() if name in names])


def _name_in_source(column: str, names: Sequence[str], mapping: Mapping[Any, str]) -> str:
    """Return the source's name of the column that neoplug names `column`."""
    alias = ALIASES.get(column, column)
    return mapping.get(column, alias if alias in names and column not in names else column)


def usable_names(mapping: Mapping[Any, str]) -> set[str]:
    """Return the names of all columns that a source may have and that are then read; no other column is."""
    return {*KNOWN, *ALIASES.values(), *mapping.values()}


def names_of(rows: Iterable[Row]) -> list[str]:
    """Return every column that any of the rows has, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _unrecognised(names: Sequence[str], mapping: Mapping[Any, str]) -> Problem:
    needed = [" + ".join(columns) for columns in NEEDED.values()]
    unknown = [name for name in names if name not in KNOWN and name not in mapping.values()]
    near = [f"`{name}`{did_you_mean(name, KNOWN)}" for name in unknown if did_you_mean(name, KNOWN)]
    mapped = f" with {' and '.join(f'`{column}`' for column in mapping)}" if mapping else ""
    hints = f"; {', '.join(part.replace('; ', ': ') for part in near)}" if near else ""
    return Problem(
        f"the columns match no kind of row{mapped}{hints}",
        why=f"{_listed(names)}; a row is {', or '.join(needed)}",
        fix="map them, as in columns: {prompt: question, completion: answer}",
        path=("data", "columns"),
    )


def _listed(names: Sequence[str]) -> str:
    return f"the columns found are {', '.join(names)}" if names else "no columns were found"


def _parsed_tools(value: Any) -> Any:
    """Return tools from a JSON string, as many datasets store them, and other values unmodified; "" becomes None."""
    try:
        return json.loads(value or "null") if isinstance(value, str) else value
    except ValueError:
        return value


def _roles_and_contents(value: Any) -> Any:
    """Return messages with the keys `role` and `content`, also where they have ShareGPT's `from` and `value`."""
    if not isinstance(value, list):
        return value
    return [
        {"role": SHAREGPT_ROLES.get(message["from"], message["from"]), "content": message.get("value")}
        if isinstance(message, dict) and isinstance(message.get("from"), str)
        else message
        for message in value
    ]


NORMALISE = {"tools": _parsed_tools, "messages": _roles_and_contents}  # for columns that have several formats


def _fault(value: Any, name: str) -> Reason:
    """Return the reason why a column's value cannot be used; an empty string where it can."""
    if name == "tools":
        return "" if isinstance(value, list) else f"tools is {type(value).__name__}, not a list"
    return _messages_fault(value) if name == "messages" else _text_fault(value, name)


def _text_fault(value: Any, name: str) -> Reason:
    if value is None:
        return f"no {name}"
    if not isinstance(value, str):
        return f"{name} is {type(value).__name__}, not text"
    return "" if value.strip() or name in MAY_BE_EMPTY else f"empty {name}"


def _messages_fault(value: Any) -> Reason:
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
            return "a message whose content is not text"
        if message["role"] == "assistant" and not any(value for name, value in message.items() if name != "role"):
            return "an empty answer"
    return ""


def _plain(messages: Any) -> list[dict[str, Any]]:
    """Return messages without keys whose value is None, which parquet adds, and with a content in parts as one text."""
    return [_without_none({**message, "content": _joined_parts(message.get("content"))}) for message in messages]


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list) else value


def _joined_parts(content: Any) -> Any:
    return "".join(part["text"] for part in content) if _is_parts(content) else content


def _is_parts(content: Any) -> bool:
    """Return whether a message's content is a list of parts that are all text."""
    return (
        isinstance(content, list)
        and bool(content)
        and all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in content)
    )
