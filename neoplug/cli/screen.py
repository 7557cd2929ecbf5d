"""Output to stdout, escaped: with rich on a terminal; elsewhere plain lines, never wrapped, cut or coloured."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from contextvars import ContextVar
from typing import IO, TYPE_CHECKING, Any

from neoplug.errors.text import escaped
from neoplug.registry.confinement import redirected

if TYPE_CHECKING:
    from rich.console import Console

Cells = Sequence[str]
WIDEST = 100  # columns to which a cell is padded
_for_json: ContextVar[IO[str] | None] = ContextVar("for_json", default=None)  # in place of stdout


def is_terminal() -> bool:
    """Return whether stdout is a terminal."""
    return sys.stdout.isatty()


def console() -> "Console":
    """Return a console of rich on stdout; for terminals only."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def echo(text: str = "") -> None:
    """Print escaped text and flush stdout, so that a pipe receives it at once."""
    print(escaped(text), flush=True)


def echo_json(value: Any) -> None:
    """Print a value as JSON, in which all but ASCII is escaped."""
    print(json.dumps(value, indent=2).replace("\x7f", "\\u007f"), file=_for_json.get(), flush=True)


@contextmanager
def json_alone() -> Iterator[None]:
    """Keep stdout for `echo_json` in the block: what else is written there goes to stderr.

    That is what plugins, models and libraries print, write by number, or have other processes write.
    """
    with ExitStack() as stack:
        own = sys.stdout
        if own is sys.__stdout__ and own is not None:
            own.flush()
            own = stack.enter_context(os.fdopen(os.dup(1), "w", encoding=own.encoding))
            stack.enter_context(redirected(1, 2))
            stack.callback(sys.__stdout__.flush)
        stack.callback(_for_json.reset, _for_json.set(own))
        with redirect_stdout(sys.stderr):
            yield


def heading(text: str) -> None:
    """Print a heading after an empty line."""
    echo()
    text = escaped(text, keep="")
    if is_terminal():
        console().print(text, style="bold", markup=False)
    else:
        echo(text)


def table(rows: Sequence[Cells], *, header: Cells = (), numbers: bool = False) -> None:
    """Print rows in columns; with `numbers` all columns but the first are right-aligned."""
    for number, line in enumerate(columns([header, *rows] if header else rows, numbers=numbers)):
        if header and number == 0 and is_terminal():
            console().print(line, style="bold", markup=False)
        else:
            echo(line)


def columns(rows: Sequence[Cells], *, numbers: bool = False) -> list[str]:
    """Return the rows as lines with escaped cells aligned by spaces; the last column is not padded."""
    rows = [[escaped(cell, keep="") for cell in row] for row in rows]
    widths = [min(WIDEST, max(map(len, cells))) for cells in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if numbers and place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def size(count: float) -> str:
    """Return a number of bytes with a decimal unit, as 1.4 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Return a time as 0:07, 12:30 or 3:04:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
