"""The measurements in which a run and its replay are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neoplug.runs.directory import RunDir


@dataclass(frozen=True)
class Measurements:
    """What a run measured.

    steps  lines of metrics.jsonl, or points of a learning curve; each with its `step`
    after  the evaluation after training; in a study also of its halves, as `test` and `validation`
    """

    steps: Sequence[Mapping[str, Any]]
    after: Mapping[str, Any]


@dataclass(frozen=True)
class Record:
    """What is recorded of a run. `measure` returns the same of a replay."""

    measured: Measurements
    measure: Callable[[RunDir], Measurements]


def measurements_of(run: RunDir) -> Measurements:
    """Return what the directory of a run has."""
    return Measurements(run.metrics.read(), (run.result.after if run.result else None) or {})
