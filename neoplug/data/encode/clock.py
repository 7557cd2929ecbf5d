"""The date that chat templates read (`strftime_now`), pinned so that a run renders the same text on any day."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime, time
from types import SimpleNamespace

FUNCTION = "strftime_now"  # the one function of transformers' chat templates that reads the clock


def today() -> str:
    """Return the current date as YYYY-MM-DD."""
    return date.today().isoformat()


def reads_clock(template: str | Mapping[str, str] | None) -> bool:
    """Return whether a chat template, or any of several named ones, may read the clock."""
    templates = template.values() if isinstance(template, Mapping) else [template or ""]
    return any(FUNCTION in text for text in templates)


@contextmanager
def pinned_clock(day: str | None) -> Iterator[None]:
    """Let chat templates read midnight of `day`, YYYY-MM-DD, while this context lasts; None: the clock.

    transformers passes templates only plain data, so their clock cannot be replaced by an argument.
    """
    from transformers.utils import chat_template_utils

    clock = chat_template_utils.datetime
    if day is not None:
        moment = datetime.combine(date.fromisoformat(day), time())
        chat_template_utils.datetime = SimpleNamespace(now=lambda: moment)
    try:
        yield
    finally:
        chat_template_utils.datetime = clock
