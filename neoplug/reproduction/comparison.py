"""Comparison of a replay with the run: step by step, its evaluation, and with the targets of its reference.

Texts are left out: an archive has none, since a plugin's may quote the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from neoplug.recipe.metric_checks import without_folder
from neoplug.recipe.reference import Reference, Target
from neoplug.registry.measures import MEASURES
from neoplug.registry.nested import leaves, numbers
from neoplug.reproduction.differences import without_folder_of_file
from neoplug.runs.measurements import Measurements
from neoplug.runs.publishable import without_text
from neoplug.training.metrics import CLOCK

EVALUATION = "after"  # the name of the evaluation after training in place of a step's number


@dataclass(frozen=True)
class Deviation:
    """A value of a replay that is not that of the run.

    step  number of the optimizer step, or "after" for the evaluation after training
    size  difference relative to the larger value, or absolute below 1; None where one is no number
    """

    step: int | str
    key: str
    before: Any
    now: Any
    size: float | None


@dataclass(frozen=True)
class Comparison:
    """A replay compared with a run, in all values but those of clock and memory.

    steps    of the run that are recorded
    equal    of these, how many are bit-equal
    first    the first deviation; None: all is bit-equal, the evaluation too
    largest  the largest deviation of a loss, or of a metric in nats after training; None where these are equal
    """

    steps: int
    equal: int
    first: Deviation | None
    largest: Deviation | None

    def is_within(self, tolerance: float | None) -> bool:
        """Return whether all is bit-equal, or each deviation of a loss or a metric in nats is within a tolerance."""
        if self.first is None:
            return True
        size = self.largest.size if self.largest else 0.0
        return bool(tolerance) and size is not None and size <= (tolerance or 0.0)


@dataclass(frozen=True)
class Judgement:
    """A metric of a replay compared with the target that the recipe states.

    value  None where the replay did not measure it
    """

    metric: str
    target: Target
    value: float | None

    @property
    def is_inside(self) -> bool:
        """Whether the value lies in the target's interval."""
        return self.value is not None and self.target.contains(self.value)

    def __str__(self) -> str:
        """Return the judgement in a sentence."""
        if self.value is None:
            return f"{self.metric} was not measured"
        return f"{self.metric} is {self.target.compared(self.value)} ({self.target})"


def compare(before: Measurements, now: Measurements) -> Comparison:
    """Compare the steps of a run and of its replay, then the evaluations after training."""
    nothing: Mapping[str, Any] = {}
    by_step = [
        [*_deviations((old or new).get("step", number), old, new)]
        for number, (old, new) in enumerate(zip_longest(before.steps, now.steps, fillvalue=nothing), 1)
    ]
    after = [*_deviations(EVALUATION, before.after, now.after)]
    found = [deviation for deviations in by_step for deviation in deviations] + after
    judged = [deviation for deviation in found if _is_judged(deviation)]
    return Comparison(
        steps=len(before.steps),
        equal=sum(not deviations for deviations in by_step[: len(before.steps)]),
        first=next(iter(found), None),
        largest=max(judged, key=lambda deviation: _rank(deviation.size), default=None),
    )


def judge(reference: Reference, evaluation: Mapping[str, Any]) -> list[Judgement]:
    """Compare the evaluation after training with the targets of a reference."""
    measured = {without_folder(name): value for name, value in numbers(evaluation).items()}
    return [Judgement(name, target, measured.get(without_folder(name))) for name, target in reference.targets.items()]


def _deviations(step: int | str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Deviation]:
    old, new = (
        {without_folder_of_file(".".join(map(str, path))): value for path, value in leaves(without_text(values))}
        for values in (before, now)
    )
    for key in old | new:
        if key not in CLOCK and (key not in old or key not in new or old[key] != new[key]):
            one, other = old.get(key), new.get(key)
            yield Deviation(step, key, one, other, _size(one, other))


def _size(one: Any, other: Any) -> float | None:
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in (one, other)):
        return None
    return float(abs(one - other) / max(abs(one), abs(other), 1.0))


def _is_judged(deviation: Deviation) -> bool:
    """Return whether a tolerance applies: to a loss of a step, its tokens, and a metric in nats after training."""
    if deviation.step == EVALUATION:
        name = deviation.key.removeprefix("test.").removeprefix("validation.")
        return name in MEASURES and MEASURES[name].unit == "nats"
    return deviation.key.partition(".")[0] in ("step", "answer_tokens", "loss", "losses")


def _rank(size: float | None) -> float:
    return float("inf") if size is None else size
