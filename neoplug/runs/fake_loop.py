"""The loop of a step on shapes: its micro-batches are made already and have the longest rows; nothing is kept of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from neoplug.data.batch import Batch
from neoplug.data.sampler import BatchSampler
from neoplug.training.loop import LoopConfig, LoopEvents, Verdict


class LongestRows(BatchSampler):
    """Puts all rows into each micro-batch of its only step."""

    def micro_batches(self, step: int, rank: int) -> list[list[int]]:
        """Return the numbers of all rows, once for each micro-batch."""
        return [list(range(self.batch_size))] * self.accumulation


@dataclass(frozen=True, eq=False, kw_only=True)
class OneStep(LoopConfig):
    """The configuration of the loop, with micro-batches that are made already."""

    prepared: list[tuple[Batch, bool]]
    is_edited = True  # so that no thread makes the micro-batches of a next step

    @property
    def batches(self) -> Any:
        """Return the micro-batches of the loop."""
        return self

    def micro_batches(self, step: int, progress: float) -> list[tuple[Batch, bool]]:
        """Return the micro-batches of the only step."""
        return self.prepared


class _Unread:
    """Metrics that are not read."""

    def add(self, values: object) -> None:
        """Drop the values of a step."""

    def flush(self) -> None:
        """Do nothing."""


EVENTS = LoopEvents(
    metrics=_Unread(),  # type: ignore[arg-type]
    on_calibrated=lambda weights: None,
    save=lambda step: None,
    evaluate=lambda step: Verdict(improved=False, stop=False),
    ends_early=lambda step: False,
    stop_requested=lambda: False,
)
