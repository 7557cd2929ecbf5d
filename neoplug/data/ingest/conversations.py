"""Conversations from the columns of a row: a system text, earlier turns, and a prompt and completion that are messages.

system                      the first message
history                     earlier turns: messages, or pairs of a question and an answer
prompt, completion          as lists of messages: one conversation, of which only the completion is scored
"""

from collections.abc import Mapping
from typing import Any

from neoplug.data.ingest.json_text import parsed, parsed_list
from neoplug.data.ingest.messages import ROLES
from neoplug.data.ingest.values import Reason

BEFORE = ("system", "history")  # columns of the text before a conversation
Message = dict[str, Any]


def is_conversation(values: Mapping[str, Any]) -> bool:
    """Return whether a row of texts is a conversation: its prompt or completion is a list, or turns come before it."""
    lists = any(isinstance(values.get(name), list) for name in ("prompt", "completion"))
    return lists or any(_filled(values.get(name)) for name in BEFORE)


def joined(values: Mapping[str, Any]) -> list[Message] | Reason:
    """Return the messages of a row, or the reason why they cannot be joined.

    values  `messages`; or `instruction`, `input` and `output`; or `prompt` and `completion`; and the columns BEFORE
    """
    messages = _messages(values)
    history = _history(values.get("history"))
    for part in (messages, history):
        if isinstance(part, Reason):
            return part
    messages = messages if messages[: len(history)] == history else [*history, *messages]
    system = values.get("system")
    if not _filled(system):
        return messages
    if not isinstance(system, str):
        return f"system is {type(system).__name__}, not text"
    first = messages[0] if messages and isinstance(messages[0], dict) else {}
    if first.get("role", first.get("from")) in ("system", "developer"):
        same = first.get("content", first.get("value")) == system
        return messages if same else "a system turn, and another text in `system`"
    return [{"role": "system", "content": system}, *messages]


def _messages(values: Mapping[str, Any]) -> list[Message] | Reason:
    if "messages" in values:
        messages: list[Message] = values["messages"]
        return messages
    if "instruction" in values:
        question = "\n\n".join(values[name] for name in ("instruction", "input") if values.get(name, "").strip())
        return [{"role": "user", "content": question}, {"role": "assistant", "content": values["output"]}]
    prompt, completion = values["prompt"], values["completion"]
    if not isinstance(prompt, list):
        return "completion is a list of messages, but prompt is not"
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    return [*(_unscored(message) for message in prompt), *completion]


def _unscored(message: Any) -> Any:
    """Return a message of a prompt; an assistant's turn in it is not scored, unless the turn says so."""
    role = message.get("role", message.get("from")) if isinstance(message, dict) else None
    if not isinstance(role, str) or ROLES.get(role, role) != "assistant":
        return message
    return {"weight": 0, **message}


def _history(value: Any) -> list[Message] | Reason:
    """Return earlier turns: messages, or pairs of a question and an answer."""
    turns = parsed_list(value) if _filled(value) else []
    if not isinstance(turns, list):
        return "history is not a list of turns"
    if all(isinstance(turn, dict) for turn in turns):
        return turns
    if not all(
        isinstance(turn, (list, tuple)) and len(turn) == 2 and all(isinstance(t, str) for t in turn) for turn in turns
    ):
        return "history is neither pairs of question and answer nor messages"
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for turn in turns for role, text in zip(roles, turn, strict=True)]


def _filled(value: Any) -> bool:
    return bool(value.strip() if isinstance(value, str) else value) and parsed(value) not in ([], None)
