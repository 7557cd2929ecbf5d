"""The inverse square root of the step: Vaswani et al. 2017, arXiv 1706.03762, eq. 3, relative to its largest rate."""

from dataclasses import dataclass
from math import sqrt

from neoplug import hookimpl
from neoplug_schedules.warmup import warmed_up


@dataclass(eq=False)
class InverseSqrt:
    """A linear warm-up, then 1 / sqrt(1 + steps since the warm-up / timescale)."""

    timescale: int | None = None  # steps, from 1; None: the warm-up's, or 10,000 without one

    def __post_init__(self) -> None:
        if self.timescale is not None and self.timescale < 1:
            raise ValueError(f"timescale is {self.timescale}, but must be at least 1")

    @hookimpl
    def rate(self, step: int, warmup_steps: int) -> float:
        """Return the rate of a step."""
        timescale = self.timescale or warmup_steps or 10_000
        return warmed_up(step, warmup_steps, lambda done: 1.0 / sqrt((done + timescale) / timescale))
