"""How strong a loss is at each step: its weight, times a factor over the run's progress.

`progress` is 0.0 at the first optimizer step and 1.0 at the last; a run of one step is at 0.0.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import cos, pi
from typing import Annotated

from pydantic import Field

Factor = Annotated[float, Field(ge=0)]
Schedule = Callable[[float], float]


@dataclass(frozen=True)
class Constant:
    """The same weight all the time."""

    def __call__(self, progress: float) -> float:
        """Return 1."""
        return 1.0


@dataclass(frozen=True)
class Linear:
    """A straight line from `start` at the first step to `end` at the last."""

    start: Factor = 1.0
    end: Factor = 0.0

    def __call__(self, progress: float) -> float:
        """Return the factor at this progress."""
        return self.start + (self.end - self.start) * progress


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from `start` at the first step to `end` at the last: flat at both ends."""

    start: Factor = 1.0
    end: Factor = 0.0

    def __call__(self, progress: float) -> float:
        """Return the factor at this progress."""
        return self.end + (self.start - self.end) * (1 + cos(pi * progress)) / 2


@dataclass(frozen=True)
class Step:
    """`start` while progress is below `at`, then `end`."""

    at: Annotated[float, Field(ge=0, le=1)] = 0.5
    start: Factor = 1.0
    end: Factor = 0.0

    def __call__(self, progress: float) -> float:
        """Return the factor at this progress."""
        return self.start if progress < self.at else self.end


SCHEDULES: dict[str, type] = {"constant": Constant, "cosine": Cosine, "linear": Linear, "step": Step}


@dataclass(frozen=True)
class Weight:
    """What a recipe says of a loss's strength.

    value      the weight, before its schedule
    schedule   progress -> factor
    calibrate  the loss whose gradient this one's shall equal at the first step, times `value`
    measured   `value` is what calibrating made of it
    """

    value: float = 1.0
    schedule: Schedule = field(default_factory=Constant)
    calibrate: str | None = None
    measured: bool = False

    def at(self, progress: float) -> float:
        """Return the weight of a step."""
        return self.value * self.schedule(progress)

    def calibrated(self, value: float) -> "Weight":
        """Return the same with the weight that was measured."""
        return replace(self, value=value, measured=True)

    @property
    def varies(self) -> bool:
        """Tell whether the weight of a step is another than what the recipe says."""
        return self.calibrate is not None or not isinstance(self.schedule, Constant)

    @property
    def ever_counts(self) -> bool:
        """Tell whether the loss has a weight above 0 at some step: every schedule is largest at one of its ends."""
        return max(self.at(0.0), self.at(1.0)) > 0
