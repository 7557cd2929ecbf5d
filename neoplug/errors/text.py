"""Text from recipes, data, models and servers made fit for people: escaped, without credentials, limited in length."""

import logging
import re
import unicodedata
from traceback import format_exception
from typing import Any

LONGEST = 1_000  # characters of one part of a message
CUT = " ... "  # in place of what was cut
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format (bidi marks, zero width), surrogates, line separators
_PARAMETERS = (
    "(?:access_?|auth_?|hf_?)?token|api_?key|secret|passw(?:or)?d|pwd|sig(?:nature)?|x-amz-(?:signature|credential)"
)
_CREDENTIALS = re.compile(  # every branch begins with a letter: a search for these is fast
    r":/{1,2}([^/\s?#@]+)(?=@)"  # user:password@ of a URL, or a token in the place of the user
    rf"|[?&;#](?i:{_PARAMETERS})=([^&\s#;]+)"
    r"|hf_[A-Za-z0-9]{20,}|api_org_[A-Za-z0-9]{20,}|gh[opsur]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}"
    r"|s(?<!\ws)k-[\w-]{20,}|xox[a-z]-[\w-]{10,}|AKIA[A-Z0-9]{16}"
)


def escaped(text: str, keep: str = "\n\t") -> str:
    """Return `text` with what could control a terminal or hide text as escapes: `\\x1b`, `\\u202e`.

    keep  control characters that stay; none where the text must stay on its line
    """
    if text.isprintable():
        return text
    return "".join(
        letter.encode("unicode_escape").decode() if _is_hidden(letter) and letter not in keep else letter
        for letter in text
    )


def one_for_one(text: str) -> str:
    """Return a line with each letter that `escaped` escapes replaced by one letter: places in it stay the same."""
    return "".join(" " if letter == "\t" else "\ufffd" if _is_hidden(letter) else letter for letter in text)


def _is_hidden(letter: str) -> bool:
    return unicodedata.category(letter) in _HIDDEN


def redacted(text: str) -> str:
    """Return `text` with each letter of a credential replaced by `*`: places in it stay the same."""
    return _CREDENTIALS.sub(_masked, text)


def _masked(match: re.Match[str]) -> str:
    secret = match[match.lastindex or 0]
    return match[0].removesuffix(secret) + "*" * len(secret)


def has_credential(text: str) -> bool:
    """Return whether `text` holds a credential: a password in a URL, or an access token of a known form."""
    return _CREDENTIALS.search(text) is not None


def shortened(text: str, longest: int = LONGEST) -> str:
    """Return `text` with its middle cut out where it is longer than `longest` characters."""
    if len(text) <= longest:
        return text
    tail = (longest - len(CUT)) // 3
    return text[: longest - len(CUT) - tail] + CUT + text[-tail:]


def presentable(text: str) -> str:
    """Return `text` as a part of a message: without credentials, escaped and shortened."""
    return shortened(escaped(redacted(text)))


class TextRecord(logging.LogRecord):
    """A log record with its message and traceback as text for people, whatever handler of which library prints it."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        if self.exc_info:
            self.exc_text = _text("".join(format_exception(self.exc_info[1])).rstrip("\n"))

    def getMessage(self) -> str:
        """Return the message, escaped and without credentials."""
        return _text(super().getMessage())


class TextFormatter(logging.Formatter):
    """Formats a log record as text for people: escaped, without credentials."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line, and its traceback."""
        return _text(super().format(record))


def _text(text: str) -> str:
    return escaped(redacted(text))
