"""The weight of a loss at each step, a number times a schedule over the run's progress; reading of its recipe keys.

`progress` is 0.0 at the first optimizer step and 1.0 at the last; a run of one step is at 0.0.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import cos, pi
from typing import Annotated, Any, Literal

from pydantic import Field

from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError
from neoplug.registry.options import build
from neoplug.registry.validation import CORE_KEYS

Factor = Annotated[float, Field(ge=0)]
Schedule = Callable[[float], float]


@dataclass(frozen=True)
class Constant:
    """The factor 1 at every step."""

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
    """Half a cosine period from `start` at the first step to `end` at the last."""

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


Name = Literal["constant", "cosine", "linear", "step"]
SCHEDULES: dict[str, type[Constant | Cosine | Linear | Step]] = {
    "constant": Constant,
    "cosine": Cosine,
    "linear": Linear,
    "step": Step,
}


@dataclass(frozen=True)
class CoreKeys:
    """The keys of a loss that neoplug reads itself, next to the options of the plugin."""

    weight: Factor = 1.0
    schedule: Name | dict[Name, dict[str, Any] | None] = "constant"
    calibrate: Annotated[str, Field(min_length=1)] | None = None


@dataclass(frozen=True)
class Weight:
    """The weight of a loss over a run.

    value      the weight, before its schedule
    schedule   progress -> factor
    calibrate  the target of the calibration: at the first step, the gradient norm of this loss, weighted, is made
               equal to `value` times that of the loss named here
    measured   `value` is the result of the calibration
    """

    value: float = 1.0
    schedule: Schedule = field(default_factory=Constant)
    calibrate: str | None = None
    measured: bool = False

    def at(self, progress: float) -> float:
        """Return the weight at this progress."""
        return self.value * self.schedule(progress)

    def calibrated(self, value: float) -> "Weight":
        """Return a copy with the weight that the calibration measured."""
        return replace(self, value=value, measured=True)

    @property
    def varies(self) -> bool:
        """Whether the weight may differ from the recipe's number at some step."""
        return self.calibrate is not None or not isinstance(self.schedule, Constant)

    @property
    def ever_counts(self) -> bool:
        """Whether the weight is above 0 at some step: every schedule is largest at one of its ends."""
        return max(self.at(0.0), self.at(1.0)) > 0


def read_weight(options: Mapping[str, Any], path: Key) -> tuple[Weight, list[Problem]]:
    """Return the weight that a loss has by its options, which are at `path`, and all mistakes in its weight's keys."""
    problems: list[Problem] = []
    read: dict[str, Any] = {}
    for key in [key for key in CORE_KEYS["loss"] if key in options]:
        try:
            value = getattr(build(CoreKeys, {key: options[key]}, path=path), key)
            read[key] = _schedule(value, (*path, key)) if key == "schedule" else value
        except RecipeError as error:
            problems += error.problems
    return Weight(read.pop("weight", 1.0), **read), problems


def _schedule(named: str | dict[Name, dict[str, Any] | None], path: Key) -> Schedule:
    if isinstance(named, str):
        return SCHEDULES[named]()
    if len(named) != 1:
        what = f"`schedule` is a map of {len(named)} names, but must be one name, or a map of one name to its values"
        raise RecipeError([Problem(what, fix="write `linear`, or `{linear: {start: 1.0, end: 0.0}}`", path=path)])
    ((name, values),) = named.items()
    return build(SCHEDULES[name], values or {}, path=(*path, name))
