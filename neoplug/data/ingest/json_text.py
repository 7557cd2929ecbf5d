"""Values that a row stores as JSON text: messages, tools, and the arguments of tool calls. Each is read once."""

import json
from collections.abc import Mapping
from typing import Any

from neoplug.data.ingest.values import Reason


def parsed(value: Any) -> Any:
    """Return a value from JSON text; any other value, and text that is not JSON, unmodified; blank text is None."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError):
        return value


def parsed_list(value: Any) -> Any:
    """Return a list from JSON text, or from a list of JSON texts of dicts."""
    value = parsed(value)
    return [_parsed_dict(item) for item in value] if isinstance(value, list) else value


def parsed_messages(value: Any) -> Any:
    """Return messages from a text that is a JSON list of {role, content}; any other value unmodified."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    found = parsed(value)
    is_messages = isinstance(found, list) and found and all(isinstance(m, dict) and "role" in m for m in found)
    return found if is_messages else value


def parsed_tools(value: Any) -> Any:
    """Return tools as a list of dicts; the list, each tool, and each tool's `parameters` may be JSON text."""
    tools = parsed_list(value)
    return [_with_parsed(tool, "parameters") for tool in tools] if isinstance(tools, list) else tools


def with_parsed_calls(message: Any) -> Any:
    """Return a message whose tool calls, and their arguments, are values, as chat templates expect them."""
    if not isinstance(message, dict) or not message.get("tool_calls"):
        return message
    calls = parsed_list(message["tool_calls"])
    calls = [_with_parsed(call, "arguments") for call in calls] if isinstance(calls, list) else calls
    return {**message, "tool_calls": calls}


def calls_fault(message: Mapping[str, Any]) -> Reason:
    """Return the reason why a message's tool calls cannot be used; an empty string where they can."""
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        return "tool_calls is not a list of calls"
    functions = [call.get("function", call) for call in calls]
    if any(isinstance(function, dict) and isinstance(function.get("arguments"), str) for function in functions):
        return "a tool call whose arguments are text, but not a JSON object"
    return ""


def _parsed_dict(value: Any) -> Any:
    """Return a dict from its JSON text; anything else unmodified. Blank text is an empty dict."""
    found = parsed(value)
    if found is None and isinstance(value, str):
        return {}
    return found if isinstance(found, dict) else value


def _with_parsed(item: Any, name: str) -> Any:
    """Return a tool or a call whose function has the value of `name`, also where it is JSON text."""
    if not isinstance(item, dict):
        return item
    if isinstance(item.get("function"), dict):
        return {**item, "function": _with_parsed(item["function"], name)}
    return {**item, name: _parsed_dict(item[name])} if isinstance(item.get(name), str) else item
