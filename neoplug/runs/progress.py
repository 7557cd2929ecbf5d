"""The interface by which a run reports progress, and an implementation that ignores it."""

from collections.abc import Mapping
from typing import Any, Protocol


class Progress(Protocol):
    """Receives the progress of a run. Called on the main process, between steps; must not raise."""

    def started(self, total_steps: int, done: int) -> None:
        """Called when training starts: `total_steps` optimizer steps in total, `done` of them before a resume."""

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Called for each line of metrics.jsonl after it is written."""

    def phase(self, text: str) -> None:
        """Called when a phase starts; `text` names it, such as "evaluating the student"."""

    def advanced(self, text: str, done: int, total: int) -> None:
        """Called as a long phase advances; `text` names it, and `done` of `total` parts of equal size are done."""

    def finished(self, result: Mapping[str, Any]) -> None:
        """Called when the run has ended; `result` is the content of result.json."""


class Silent:
    """Ignores the progress of a run."""

    def started(self, total_steps: int, done: int) -> None:
        """Do nothing."""

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Do nothing."""

    def phase(self, text: str) -> None:
        """Do nothing."""

    def advanced(self, text: str, done: int, total: int) -> None:
        """Do nothing."""

    def finished(self, result: Mapping[str, Any]) -> None:
        """Do nothing."""
