"""What a row says and the text of its chat template does not have: turns, thoughts, tool calls and tools.

The conversation is rendered a second time, with a marker in place of each text that the row has. What has no marker in
the second text is left out by the template, provided that the first text also stays the same when it alone changes.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neoplug.data.encode.chat import ChatTemplate, Message, RenderError, Tools

ROLES = ("system", "user", "assistant", "tool")  # the roles that transformers documents
REASONING = ("reasoning_content", "thinking", "reasoning")  # in the order in which transformers reads them
THOUGHT = re.compile(r"(\s*(?:<think>)?)(.*?)(</think>\s*)(.*)", re.DOTALL)  # at the beginning of a content

THOUGHT_LABEL = "a thought"


@dataclass(frozen=True)
class Part:
    """A text of the row.

    label    what messages call it
    message  index of its message; -1 for tools
    text     the text
    """

    label: str
    message: int
    text: str

    @property
    def is_thought(self) -> bool:
        """Return whether the text is the reasoning before an answer."""
        return self.label == THOUGHT_LABEL or self.label.strip("`") in REASONING


class MarkedRow:
    """A row whose texts are replaced by markers, all of them or one."""

    def __init__(self, messages: Sequence[Message], tools: Tools, only: int | None = None) -> None:
        """Replace the text of each part, or of part number `only`."""
        self.parts: list[Part] = []
        self._only = only
        self.messages = [self._message(index, message) for index, message in enumerate(messages)]
        self.tools = None if tools is None else [self._tool(tool) for tool in tools]

    def _mark(self, label: str, message: int, text: Any) -> Any:
        """Return the marker of a text, which becomes a part; other values unmodified."""
        if not isinstance(text, str) or not text.strip():
            return text
        return self._part(label, message, text) or text

    def _part(self, label: str, message: int, text: str) -> str:
        """Add a part; return its marker, or an empty string where it is not to be replaced."""
        self.parts.append(Part(label, message, text))
        number = len(self.parts) - 1
        return marker(number) if self._only in (None, number) else ""

    def _message(self, index: int, message: Message) -> Message:
        marked = {**message, "content": self._content(index, message)}
        if message.get("content") is None and "content" not in message:
            del marked["content"]
        reasoning = next((name for name in REASONING if message.get(name) is not None), None)
        if reasoning:
            marked[reasoning] = self._mark(f"`{reasoning}`", index, message[reasoning])
        if isinstance(message.get("tool_calls"), list):
            marked["tool_calls"] = [self._call(index, call) for call in message["tool_calls"]]
        return marked

    def _content(self, index: int, message: Message) -> Any:
        content, label = message.get("content"), f"a turn of `{message['role']}`"
        found = THOUGHT.fullmatch(content) if isinstance(content, str) and message["role"] == "assistant" else None
        if not found:
            return self._mark(label, index, content)
        opening, thought, closing, rest = found.groups()
        return opening + self._mark(THOUGHT_LABEL, index, thought) + closing + self._mark(label, index, rest)

    def _call(self, index: int, call: Any) -> Any:
        """Return a tool call with one marker in place of its name and of all values of its arguments."""
        inner = _function_of(call)
        mark = self._part("`tool_calls`", index, str(inner.get("name"))) if inner else ""
        if not mark:
            return call
        marked = {**inner, "name": mark}
        if "arguments" in inner:
            marked["arguments"] = _all_values(inner["arguments"], mark) or {mark: mark}
        return {**call, "function": marked} if inner is not call else marked

    def _tool(self, tool: Any) -> Any:
        """Return a tool with one marker in place of its name and its description."""
        inner = _function_of(tool)
        mark = self._part("`tools`", -1, str(inner.get("name"))) if inner else ""
        if not mark:
            return tool
        marked = {**inner, **{name: mark for name in ("name", "description") if name in inner}}
        return {**tool, "function": marked} if inner is not tool else marked


def _function_of(value: Any) -> Mapping[str, Any]:
    """Return the name and arguments, or parameters, of a tool call or a tool; empty for other values."""
    if not isinstance(value, Mapping):
        return {}
    return value["function"] if isinstance(value.get("function"), Mapping) else value


def _all_values(value: Any, mark: str) -> Any:
    """Return arguments with `mark` in place of all values; arguments that are JSON as text stay JSON."""
    if isinstance(value, Mapping):
        return {name: _all_values(inner, mark) for name, inner in value.items()}
    if isinstance(value, list):
        return [_all_values(inner, mark) for inner in value]
    return json.dumps({mark: mark}) if isinstance(value, str) and value.lstrip()[:1] in ("{", "[") else mark


def marker(number: int) -> str:
    """Return a text that no row has, and that is also a valid name."""
    return f"nplg{number}trace"


def left_out(chat: ChatTemplate, messages: Sequence[Message], tools: Tools, text: str) -> list[Part]:
    """Return the parts of the row that leave no trace in `text`, its rendered conversation."""
    whole = MarkedRow(messages, tools)
    try:
        marked = chat.text(whole.messages, tools=whole.tools).casefold()
    except RenderError:  # a template that accepts only certain texts
        marked = ""
    missing = [number for number in range(len(whole.parts)) if marker(number) not in marked]
    return [whole.parts[number] for number in missing if _has_no_trace(chat, messages, tools, text, number)]


def _has_no_trace(chat: ChatTemplate, messages: Sequence[Message], tools: Tools, text: str, number: int) -> bool:
    one = MarkedRow(messages, tools, only=number)
    try:
        return chat.text(one.messages, tools=one.tools) == text
    except RenderError:
        return one.parts[number].text.strip() not in text


def unknown_roles(chat: ChatTemplate, messages: Sequence[Message], tools: Tools) -> list[str]:
    """Return the roles of a row that are neither transformers' nor named in the template."""
    template = chat.template_of(tools)
    roles = dict.fromkeys(message["role"] for message in messages if message["role"] not in ROLES)
    return [role for role in roles if f"'{role}'" not in template and f'"{role}"' not in template]
