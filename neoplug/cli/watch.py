"""Progress of a run: a bar on a terminal, elsewhere a plain line every few steps; log records go to stderr."""

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from neoplug.cli.screen import console, duration, echo, is_terminal
from neoplug.errors.text import TextFormatter, escaped
from neoplug.runs.progress import Silent

if TYPE_CHECKING:
    from rich.console import Console

    from neoplug.runs.progress import Progress


PARTS = 20  # lines that a long phase prints where there is no terminal


def is_main() -> bool:
    """Return whether this is the main process, by the rank that torchrun sets."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def progress(every: int) -> Iterator["Progress"]:
    """Yield a progress display: a bar on a terminal, else a line every `every` steps; none on other ranks."""
    if not is_main():
        yield Silent()
        return
    if not is_terminal():
        yield Lines(every)
        return
    bar = Bar(console())
    with bar.display:
        yield bar


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """Print log records of neoplug on stderr inside the block: info and above, on other ranks warnings and above."""
    handler = _ToStderr(logging.INFO if is_main() else logging.WARNING)
    handler.setFormatter(_Plain())
    logger = logging.getLogger("neoplug")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(level or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _ToStderr(logging.Handler):
    """Writes to the current sys.stderr, which a live bar replaces."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


class _Plain(TextFormatter):
    """Formats an info record as its text, a more severe one with its level in front."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {text}"


class Clock:
    """Estimate of the remaining time, from the steps of this process."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done = total, done
        self.start = time.monotonic()

    def left(self, step: int) -> float | None:
        """Return the estimated seconds left after `step`; None before the first step of this process."""
        if step <= self.done:
            return None
        return (time.monotonic() - self.start) / (step - self.done) * (self.total - step)


class Lines:
    """Progress as plain lines, for files and pipes."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.clock = Clock(0, 0)

    def started(self, total_steps: int, done: int) -> None:
        """Print the number of steps."""
        self.clock = Clock(total_steps, done)
        echo(f"training: {total_steps} steps" + (f", continued after step {done}" if done else ""))

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Print every `every` steps, and the last one."""
        number, total = metrics["step"], self.clock.total
        if number % self.every and number != total:
            return
        parts = [f"step {number}/{total}", *format_metrics(metrics)]
        left = self.clock.left(number)
        echo("  ".join(parts if left is None else [*parts, f"{duration(left)} left"]))

    def phase(self, text: str) -> None:
        """Print the current phase."""
        echo(text)

    def advanced(self, text: str, done: int, total: int) -> None:
        """Print the beginning, then about every twentieth part."""
        if done == 0:
            self.clock = Clock(total, 0)
        elif done * PARTS // total == (done - 1) * PARTS // total:
            return
        left = self.clock.left(done)
        echo("  ".join([f"{text} {done}/{total}", *([] if left is None else [f"{duration(left)} left"])]))

    def finished(self, result: Mapping[str, Any]) -> None:
        """Do nothing: the result is printed as a table."""


class Bar:
    """Progress as a live bar with phase, step and time left; below it losses and speed."""

    def __init__(self, console: "Console") -> None:
        from rich.console import Group
        from rich.live import Live
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
        from rich.text import Text

        texts = [
            TextColumn(f"{{task.{name}}}", markup=False) for name in ("description", "fields[step]", "fields[left]")
        ]
        self.bar = Progress(SpinnerColumn(), texts[0], BarColumn(bar_width=20), *texts[1:], console=console)
        self.task = self.bar.add_task("starting", total=None, step="", left="")
        self.details = Text()
        self.display = Live(Group(self.bar, self.details), console=console, refresh_per_second=4)
        self.clock = Clock(0, 0)

    def started(self, total_steps: int, done: int) -> None:
        """Set the length of the bar."""
        self.clock = Clock(total_steps, done)
        self.bar.update(
            self.task, description="training", total=total_steps, completed=done, step=f"{done}/{total_steps}"
        )

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Advance the bar, and show the losses of this step."""
        self._advance("training", metrics["step"])
        self.details.plain = escaped("  ".join(format_metrics(metrics)), keep="")

    def _advance(self, description: str, done: int) -> None:
        total, left = self.clock.total, self.clock.left(done)
        self.bar.update(
            self.task,
            description=escaped(description, keep=""),
            total=total,
            completed=done,
            step=f"{done}/{total}",
            left="" if left is None else f"{duration(left)} left",
        )

    def phase(self, text: str) -> None:
        """Show the current phase; the bar does not move."""
        self.bar.update(self.task, description=escaped(text, keep=""))

    def advanced(self, text: str, done: int, total: int) -> None:
        """Show the parts of a phase that are done."""
        if done == 0:
            self.clock = Clock(total, 0)
        self._advance(text, done)

    def finished(self, result: Mapping[str, Any]) -> None:
        """Mark the bar as done."""
        self.bar.update(self.task, description="done", left="")


def format_metrics(metrics: Mapping[str, Any]) -> list[str]:
    """Return the parts of a step's line: the weighted sum of the losses, each loss, the penalty and tokens per second.

    The sum is left out where there is one loss and the sum equals it.
    """
    losses = metrics.get("losses") or {}
    equal = list(losses.values()) == [metrics["loss"]]
    parts = [] if equal else [f"loss {metrics['loss']:.4f}"]
    parts += [f"{name} {value:.4f}" for name, value in losses.items()]
    if "penalty" in metrics:
        parts.append(f"penalty {metrics['penalty']:.4g}")
    if metrics.get("tokens_per_second"):
        parts.append(f"{metrics['tokens_per_second']:,.0f} tokens/s")
    return parts
