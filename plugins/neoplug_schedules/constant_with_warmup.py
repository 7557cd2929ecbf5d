"""One learning rate after a linear warm-up."""

from dataclasses import dataclass

from neoplug import hookimpl
from neoplug_schedules.warmup import warmed_up


@dataclass(eq=False)
class ConstantWithWarmup:
    """A linear warm-up, then the same rate at all steps."""

    @hookimpl
    def rate(self, step: int, warmup_steps: int) -> float:
        """Return the rate of a step."""
        return warmed_up(step, warmup_steps, lambda done: 1.0)
