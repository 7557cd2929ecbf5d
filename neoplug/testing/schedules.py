"""Conformance tests of learning-rate schedules, over runs of 1 to 200 steps.

from neoplug.testing import check_schedule

def test_mine():
    check_schedule(Mine())
"""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from typing import Any

from neoplug.errors import NeoplugError
from neoplug.registry import answered
from neoplug.testing.hooks import answer, global_seeds
from neoplug.testing.loss_examples import hook
from neoplug.testing.search import Broken, Kit, NotApplicable, properties_of

# Steps of the run, steps of the warm-up: from the shortest; also a warm-up that is longer than the run.
RUNS = [(total, warmup) for total in (1, 2, 5, 12, 40, 200) for warmup in sorted({0, 1, total // 4, total, total + 3})]
REQUIRED = "warmup_steps"


def check_schedule(schedule: Any) -> None:
    """Test every property of schedules.

    Raises AssertionError for a property that does not hold, with the shortest run that breaks it.
    """
    SCHEDULE.hold(schedule, 0)


class ScheduleProperties:
    """The properties of schedules: each method without underscore, which raises Broken where it does not hold."""

    def rates(self, schedule: Any) -> None:
        """Its rates are finite and not negative, also at the step after the last."""
        for total, warmup in RUNS:
            for step, rate in enumerate(_rates(schedule, total, warmup)):
                if not (isfinite(rate) and rate >= 0):
                    raise Broken(f"the rate of step {step} of {total} with {warmup} steps of warm-up is {rate}")

    def trains(self, schedule: Any) -> None:
        """It does not leave every rate at 0."""
        for total, warmup in RUNS:
            if warmup == 0 and not any(_rates(schedule, total, warmup)[:total]):
                raise Broken(f"all {total} rates are 0")

    def warmup(self, schedule: Any) -> None:
        """During the warm-up, if it has one, its rates do not fall."""
        implementation = answered(type(schedule)).get("rate")
        if implementation is None or REQUIRED not in implementation.signature.parameters:
            raise NotApplicable(f"its `rate` does not take `{REQUIRED}`")
        for total, warmup in RUNS:
            rates = _rates(schedule, total, warmup)[: min(total, warmup + 1)]
            if sorted(rates) != rates:
                raise Broken(f"its rates fall in the warm-up of {warmup} of {total} steps")

    def repeated(self, schedule: Any) -> None:
        """A rate depends on its arguments alone: a resumed run asks only for its own steps, and ranks agree."""
        for total, warmup in RUNS:
            whole = _rates(schedule, total, warmup)
            with global_seeds(1):
                again = _rates(replace(schedule), total, warmup, first=total // 2)
            if again != whole[total // 2 :]:
                raise Broken(f"resumed at step {total // 2} of {total}, it gives other rates")


SCHEDULE = Kit("schedule", {}, once=properties_of(ScheduleProperties()))


def _rates(schedule: Any, total: int, warmup: int, first: int = 0) -> list[float]:
    """Return the rates of the steps from `first` to `total`.

    Raises TypeError where the plugin has no `rate`, Broken where it raises an error.
    """
    if hook(schedule, "rate") is None:
        raise TypeError(f"{type(schedule).__name__} has no `rate`")
    try:
        return [
            answer(schedule, "rate", step=step, total_steps=total, warmup_steps=warmup)
            for step in range(first, total + 1)
        ]
    except NeoplugError as error:
        raise Broken(f"a run of {total} steps, {warmup} of warm-up: {error.message().partition(chr(10))[0]}") from error
