"""The columns of a row: four kinds of rows, recognised by column names or mapped by the recipe.

    messages (+ tools)              a conversation, a list of {role, content}, or ShareGPT's `conversations` of
                                    {from, value}; `tools` are the functions that the assistant may call
    prompt + completion             two texts, or two lists of messages, which are one conversation
    instruction (+ input) + output  Alpaca's three texts
    text                            one text

A conversation or an Alpaca row may have a `system` text and a `history` of earlier turns: the row is then a
conversation that begins with these. The rows of a source may be of several kinds. A row with all columns of its kind
becomes a `Content`; for any other row, the reason why it cannot be used is returned, to be counted.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from neoplug.data.ingest.conversations import BEFORE, is_conversation, joined
from neoplug.data.ingest.json_text import calls_fault, parsed, parsed_messages, parsed_tools
from neoplug.data.ingest.messages import mask_fault, roles_and_contents
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
OF_MESSAGES = ("tools", "chat_template_kwargs", *BEFORE)  # what a row of messages may have
OPTIONAL: dict[Kind, tuple[str, ...]] = {
    "messages": OF_MESSAGES,
    "completion": (),
    "alpaca": ("input", "chat_template_kwargs", *BEFORE),
    "text": (),
}
KNOWN = tuple(dict.fromkeys(name for kind in NEEDED for name in (*NEEDED[kind], *OPTIONAL[kind])))
MAY_BE_EMPTY = ("prompt", "input")
EMPTY = (None, "")  # what a row has in the columns of another kind; in CSV, which has no null, an empty text
# neoplug's column name -> the name that a row may have in its place
ALIASES = {"messages": "conversations", "system": "system_prompt"}
# Columns that usually hold text of the prompt. Where a row does not use one that it fills, this is reported.
PROMPT_TEXT = ("system", "system_prompt", "history", "instruction", "input", "prompt", "question", "context", "tools")
# Of which an answer has one.
SAID = ("content", "reasoning_content", "reasoning", "thinking", "tool_calls")


@dataclass(frozen=True)
class Content:
    """The columns of a row that neoplug uses. Rows of equal `digest` are identical, whatever their other columns.

    number  index of the row in its source
    values  neoplug's column name -> value
    digest  sha256 of the values without keys that are None, in hexadecimal: it decides whether the row is held out
    unused  the source's columns of PROMPT_TEXT that have text which is not in `values`
    """

    number: int
    kind: Kind
    values: Mapping[str, Any]
    digest: str
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Columns:
    """The mapping of a source's columns: for each kind of row, neoplug's column name -> the source's.

    kinds  the first is the main kind of the source
    used   the source's columns that belong to the main kind
    other  a source's column in `kinds` -> the one that a row may have in its place
    """

    kinds: Mapping[Kind, Mapping[str, str]]
    used: Sequence[str]
    other: Mapping[str, str]

    @property
    def main(self) -> Kind:
        """Return the main kind: that of a row whose columns match no kind."""
        return next(iter(self.kinds))

    def content(self, row: Row, number: int) -> Content | Reason:
        """Return the content of the row, or the reason why it cannot be used."""
        kind = self._kind_of(row)
        columns = self._columns_of(kind, row)
        values: dict[str, Any] = {}
        for column, source_column in columns.items():
            value = self._value(row, source_column)
            value = NORMALISE[column](value) if column in NORMALISE else value
            if value is None and column in (*OPTIONAL[kind], *OF_MESSAGES):
                continue
            if reason := _fault(value, column):
                return reason
            values[column] = value
        if is_conversation(values):
            kind, messages = "messages", joined(values)
            if reason := messages if isinstance(messages, Reason) else _messages_fault(roles_and_contents(messages)):
                return reason
            values = {name: value for name, value in values.items() if name in OF_MESSAGES and name not in BEFORE}
            values["messages"] = roles_and_contents(messages)
        if kind == "messages":
            values["messages"] = [_with_text(message) for message in values["messages"]]
        values = {name: value for name, value in values.items() if name not in BEFORE}
        if kind == "alpaca" and not values.get("input", "").strip():
            values.pop("input", None)
        return Content(number, kind, values, content_hash(_without_none(values)), _unused(row, columns, values))

    def _columns_of(self, kind: Kind, row: Row) -> Mapping[str, str]:
        """Return the columns of a row: of a prompt and completion that are messages, also those of messages."""
        columns = self.kinds[kind]
        texts = [parsed_messages(row.get(columns[name])) for name in NEEDED[kind]]
        if kind != "completion" or not any(isinstance(text, list) for text in texts):
            return columns
        of_messages = self.kinds.get("messages", {})
        return {**columns, **{name: of_messages.get(name, name) for name in OF_MESSAGES}}

    def _value(self, row: Row, column: str) -> Any:
        """Return a column's value, or that of the column which the row has in its place."""
        value = row.get(column)
        return row.get(self.other[column], value) if value in EMPTY and column in self.other else value

    def _kind_of(self, row: Row) -> Kind:
        """Return the first kind whose columns all have a value in the row; else the first with any value.

        `text` is the kind of a row only if no column of another kind has a value: next to these, it usually is the same
        row, already formatted.
        """
        filled = {
            kind: [self._value(row, columns[name]) not in EMPTY for name in NEEDED[kind]]
            for kind, columns in self.kinds.items()
            if all(columns[name] in row or self.other.get(columns[name]) in row for name in NEEDED[kind])
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
    other = _other_names(mapping)
    named = [name for column in kinds[main[0]].values() for name in (column, other.get(column, ""))]
    return Columns({main[0]: kinds[main[0]]} | kinds, [name for name in named if name in names], other)


def _other_names(mapping: Mapping[Any, str]) -> dict[str, str]:
    """Return each name of a column with aliases -> its other name, without those that the recipe maps."""
    pairs = [pair for pair in ALIASES.items() if pair[0] not in mapping and not {*pair} & {*mapping.values()}]
    return {name: other for pair in pairs for name, other in (pair, pair[::-1])}


def _name_in_source(column: str, names: Sequence[str], mapping: Mapping[Any, str]) -> str:
    """Return the source's name of the column that neoplug names `column`."""
    alias = ALIASES.get(column, column)
    return mapping.get(column, alias if alias in names and column not in names else column)


def usable_names(mapping: Mapping[Any, str]) -> set[str]:
    """Return the names of all columns that a source may have and that are then read; no other column is."""
    return {*KNOWN, *PROMPT_TEXT, *ALIASES.values(), *mapping.values()}


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


# For columns that have several formats.
NORMALISE = {
    "tools": parsed_tools,
    "messages": roles_and_contents,
    "history": parsed,
    "prompt": parsed_messages,
    "completion": parsed_messages,
    "chat_template_kwargs": parsed,
}


def _unused(row: Row, columns: Mapping[str, str], values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns of PROMPT_TEXT that are not among a row's columns and have text which is not in its values."""
    others = [name for name in PROMPT_TEXT if row.get(name) and name not in columns.values()]
    others = [name for name in others if not isinstance(row[name], str) or row[name].strip()]
    if not others:
        return ()
    texts = [value for value in values.values() if isinstance(value, str)]
    texts += [message.get("content") or "" for message in values.get("messages", [])]
    return tuple(name for name in others if not any(str(row[name]).strip() in text for text in texts))


def _fault(value: Any, name: str) -> Reason:
    """Return the reason why a column's value cannot be used; an empty string where it can."""
    if name in BEFORE or (name in ("prompt", "completion") and isinstance(value, list)):
        return ""  # `joined` checks these
    if name == "tools":
        return _tools_fault(value)
    if name == "chat_template_kwargs":
        return "" if isinstance(value, dict) else f"{name} is {type(value).__name__}, not an object"
    return _messages_fault(value) if name == "messages" else _text_fault(value, name)


def _tools_fault(value: Any) -> Reason:
    if not isinstance(value, list):
        return f"tools is {type(value).__name__}, not a list"
    return "a tool that is text, but not a JSON object" if any(isinstance(tool, str) for tool in value) else ""


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
        if message["role"] == "assistant" and not any(message.get(name) for name in SAID):
            return "an empty answer"
        if reason := calls_fault(message) or mask_fault(message):
            return reason
    return ""


def _with_text(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message whose content in parts is one text."""
    content = message.get("content")
    if not isinstance(content, list) or not _is_parts(content):
        return {**message}
    return {**message, "content": "".join(part["text"] for part in content)}


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list) else value


def _is_parts(content: Any) -> bool:
    """Return whether a message's content is a list of parts that are all text."""
    return (
        isinstance(content, list)
        and bool(content)
        and all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in content)
    )
