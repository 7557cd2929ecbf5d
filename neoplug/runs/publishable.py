"""What may be published of a run's records: no local path, no credential, no text of a plugin's measurements."""

import os
import re
from collections.abc import Mapping
from typing import Any

from neoplug.errors.text import redacted

MASK = "***"  # in place of a credential
SHORTEST = 8  # characters of a credential in the environment; a shorter one could be part of any text

_CREDENTIAL = re.compile(r"(?:\w+_)?(?:api_?key|secret|password|passwd)|(?:access_?|auth_?|hf_?)?token", re.IGNORECASE)
_VARIABLE = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_WHOLE_PATH = re.compile(r"(?:file:|~\w*/|/|\.\./|[A-Za-z]:[/\\]|\\\\).*")
_PATH = re.compile(r"(?<![\w/.~<-])(?:file://)?(?:~\w*)?(?:/[^\s/'\"`,;]+)+/([^\s/'\"`,;]*)")  # in a sentence


def publishable(value: Any) -> Any:
    """Return a record (recipe, lock, result, configuration) fit for the public.

    Of a local path only the last component is left. Credentials are masked: see `masked`, and the values of options
    that are named like one.
    """
    if isinstance(value, Mapping):
        return {publishable(key): _named(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [publishable(inner) for inner in value]
    return _text(value) if isinstance(value, str) else value


def without_text(value: Any) -> Any:
    """Return measurements without the texts in maps and lists, which may quote the data."""
    if isinstance(value, Mapping):
        return {key: without_text(inner) for key, inner in value.items() if not isinstance(inner, str)}
    if isinstance(value, list | tuple):
        return [without_text(inner) for inner in value if not isinstance(inner, str)]
    return value


def masked(text: str) -> str:
    """Return a text with its credentials masked: those in URLs, tokens of known forms, and those of the environment."""
    for name, secret in os.environ.items():
        if _VARIABLE.search(name) and len(secret) >= SHORTEST:
            text = text.replace(secret, MASK)
    return redacted(text)


def _named(key: str, value: Any) -> Any:
    return MASK if isinstance(value, str) and value and _CREDENTIAL.fullmatch(key) else publishable(value)


def _text(text: str) -> str:
    text = masked(text)
    if _WHOLE_PATH.fullmatch(text):
        return re.split(r"[/\\]", text.rstrip("/\\"))[-1]
    return _PATH.sub(r"\1", text)
