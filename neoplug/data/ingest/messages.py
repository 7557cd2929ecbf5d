"""The messages of a row: the formats of other tools become {role, content}, and turns may be excluded from the loss."""

from collections.abc import Mapping
from typing import Any

from neoplug.data.encode.faults import NOT_A_MASK
from neoplug.data.ingest.json_text import parsed_list, with_parsed_calls
from neoplug.data.ingest.values import Reason

# Roles of ShareGPT's `from`, and of datasets for other tools -> the role of chat templates.
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "developer": "system",
}
MASKS = ("weight", "loss", "train", "trainable")  # keys of a turn: 0 or false excludes it from the loss


def roles_and_contents(value: Any) -> Any:
    """Return messages with the keys `role` and `content`, also where they have ShareGPT's `from` and `value`."""
    value = parsed_list(value)
    return [with_parsed_calls(_with_role(message)) for message in value] if isinstance(value, list) else value


def _with_role(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    if isinstance(message.get("from"), str) and message.get("role") is None:
        others = {name: value for name, value in message.items() if name not in ("from", "value", "role", "content")}
        content = message.get("value") if message.get("value") is not None else message.get("content")
        message = {"role": message["from"], "content": content, **others}
    role = message.get("role")
    return {**message, "role": ROLES.get(role, role)} if isinstance(role, str) else message


def mask_fault(message: Mapping[str, Any]) -> Reason:
    """Return the reason why a turn's mask cannot be used; an empty string where it can, or there is none."""
    for name in MASKS:
        value = message.get(name)
        if value is not None and (isinstance(value, (str, list, dict)) or value not in (0, 1)):
            return f"`{name}` {NOT_A_MASK.format(value)}"
    return ""


def is_unscored(message: Mapping[str, Any]) -> bool:
    """Return whether a turn says that it is not in the loss."""
    return any(message.get(name) is not None and not message[name] for name in MASKS)
