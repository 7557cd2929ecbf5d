"""What a run tells whoever watches it: the command line shows it, Python code mostly keeps silent."""

from collections.abc import Mapping
from typing import Any, Protocol


class Progress(Protocol):
    """Listens to a run. Called on the main process only, between steps, never inside one; must not raise."""

    def started(self, total_steps: int, done: int) -> None:
        """Training begins: `total_steps` optimizer steps in all, `done` of them in an earlier session."""

    def step(self, metrics: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl, after it was flushed to disk; lines of a flush arrive one after the other."""

    def phase(self, text: str) -> None:
        """Say what goes on now, as "evaluating the student"."""

    def finished(self, result: Mapping[str, Any]) -> None:
        """The run is over, and `result` is what stands in result.json."""


class Silent:
    """The listener of a run that nobody watches."""

    def started(self, total_steps: int, done: int) -> None:
        """Ignore it."""

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Ignore it."""

    def phase(self, text: str) -> None:
        """Ignore it."""

    def finished(self, result: Mapping[str, Any]) -> None:
        """Ignore it."""
