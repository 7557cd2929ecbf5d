"""Progress of a study on stderr: a live table on a terminal, elsewhere a line for each job that ends."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from neoplug.cli.screen import duration
from neoplug.errors.text import escaped

if TYPE_CHECKING:
    from neoplug.studies.ledger import Row
    from neoplug.studies.status import State, Watch

SHOWN = 16  # running jobs


@contextmanager
def watching() -> Iterator["Watch"]:
    """Yield a display of a study's progress: a live table where stderr is a terminal, else lines."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    table = Table()
    with table.display:
        yield table


def lines(state: "State") -> list[str]:
    """Return a state in lines: the phase, what is done, what runs, and the time left."""
    left = "" if state.seconds_left is None or state.phase == "complete" else f", {duration(state.seconds_left)} left"
    counts = ", ".join(f"{number:,} {status.replace('_', ' ')}" for status, number in state.counts.items())
    shown = [
        f"  {entry['label']}, for {duration(max(0.0, time.time() - entry['since']))}" for entry in state.running[:SHOWN]
    ]
    more = len(state.running) - len(shown)
    return [
        f"{state.name}, {state.phase}: {state.done:,} of {state.expected:,} jobs are done{left}",
        *([f"  {counts}"] if counts else []),
        *([f"running: {len(state.running)}", *shown] if shown else []),
        *([f"  and {more} more"] if more > 0 else []),
    ]


class Lines:
    """Progress as plain lines: one for each phase, and one for each job that ends."""

    def __init__(self) -> None:
        self.phase = ""
        self.state: State | None = None

    def update(self, state: "State") -> None:
        """Print a phase when it begins."""
        self.state = state
        if state.phase != self.phase:
            self.phase = state.phase
            print(escaped(lines(state)[0]), file=sys.stderr, flush=True)

    def ended(self, row: "Row", label: str) -> None:
        """Print how a job ended."""
        seconds = "" if row.seconds is None else f" in {duration(row.seconds)}"
        reason = f": {row.reason.splitlines()[0]}" if row.reason else ""
        print(escaped(f"{label}: {row.status}{seconds}{reason}", keep=""), file=sys.stderr, flush=True)


class Table:
    """Progress as a live table."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        self.text = Text("starting")
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.display = Live(self.text, console=console, refresh_per_second=2)

    def update(self, state: "State") -> None:
        """Show the state."""
        self.text.plain = "\n".join(escaped(line, keep="") for line in lines(state))

    def ended(self, row: "Row", label: str) -> None:
        """Do nothing: the next state has it."""
