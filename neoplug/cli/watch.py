"""A run as it goes: a bar on a terminal, elsewhere a plain line every few steps. The notes of the log go to stderr."""

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from neoplug.cli.screen import console, duration, is_terminal, say
from neoplug.runs.progress import Silent

if TYPE_CHECKING:
    from rich.console import Console

    from neoplug.runs.progress import Progress


def is_main() -> bool:
    """Say whether this process speaks for all: torchrun numbers the others."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def progress(every: int) -> Iterator["Progress"]:
    """Yield what shows a run: a bar on a terminal, otherwise lines, one every `every` steps; nothing on other ranks."""
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
def notes() -> Iterator[None]:
    """Show the notes of the run on stderr while this context lasts."""
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
    """Writes to what stderr is now: a live bar puts itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


class _Plain(logging.Formatter):
    """A note is its text; what is worse than a note says so."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {text}"


class Clock:
    """How long the remaining steps take, judged by those of this session."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done = total, done
        self.start = time.monotonic()

    def left(self, step: int) -> float | None:
        """Return the seconds left after `step`; None before the first."""
        if step <= self.done:
            return None
        return (time.monotonic() - self.start) / (step - self.done) * (self.total - step)


class Lines:
    """Plain lines for files and pipes."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.clock = Clock(0, 0)

    def started(self, total_steps: int, done: int) -> None:
        """Say how far it has to go."""
        self.clock = Clock(total_steps, done)
        say(f"training: {total_steps} steps" + (f", going on after step {done}" if done else ""))

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Print every so many steps, and the last."""
        number, total = metrics["step"], self.clock.total
        if number % self.every and number != total:
            return
        parts = [f"step {number}/{total}", *measures(metrics)]
        left = self.clock.left(number)
        say("  ".join(parts if left is None else [*parts, f"{duration(left)} left"]))

    def phase(self, text: str) -> None:
        """Print what goes on now."""
        say(text)

    def finished(self, result: Mapping[str, Any]) -> None:
        """Leave the result to the table."""


class Bar:
    """A live bar: what goes on, step, time left; below it the losses and the speed."""

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
        self.below = Text()
        self.display = Live(Group(self.bar, self.below), console=console, refresh_per_second=4)
        self.clock = Clock(0, 0)

    def started(self, total_steps: int, done: int) -> None:
        """Give the bar its length."""
        self.clock = Clock(total_steps, done)
        self.bar.update(
            self.task, description="training", total=total_steps, completed=done, step=f"{done}/{total_steps}"
        )

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Move on, and show the losses of this step."""
        number, left = metrics["step"], self.clock.left(metrics["step"])
        self.bar.update(
            self.task,
            description="training",
            completed=number,
            step=f"{number}/{self.clock.total}",
            left="" if left is None else f"{duration(left)} left",
        )
        self.below.plain = "  ".join(measures(metrics))

    def phase(self, text: str) -> None:
        """Show what goes on now beside the bar, which keeps its place."""
        self.bar.update(self.task, description=text)

    def finished(self, result: Mapping[str, Any]) -> None:
        """Leave the full bar on the screen."""
        self.bar.update(self.task, description="done", left="")


def measures(metrics: Mapping[str, Any]) -> list[str]:
    """Return the losses and the speed of a step: the weighted sum unless one loss says the same, then each loss."""
    losses = metrics.get("losses") or {}
    same = list(losses.values()) == [metrics["loss"]]
    parts = [] if same else [f"loss {metrics['loss']:.4f}"]
    parts += [f"{name} {value:.4f}" for name, value in losses.items()]
    if "penalty" in metrics:
        parts.append(f"penalty {metrics['penalty']:.4g}")
    if metrics.get("tokens_per_second"):
        parts.append(f"{metrics['tokens_per_second']:,.0f} tokens/s")
    return parts
