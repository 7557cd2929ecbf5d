"""A straight line down after a linear warm-up."""

from dataclasses import dataclass

from neoplug import hookimpl
from neoplug_schedules.warmup import warmed_up


@dataclass(eq=False)
class Linear:
    """A linear warm-up, then a straight line to 0 after the last step."""

    @hookimpl
    def rate(self, step: int, total_steps: int, warmup_steps: int) -> float:
        """Return the rate of a step."""
        falling = total_steps - warmup_steps
        return warmed_up(step, warmup_steps, lambda done: max(0.0, (falling - done) / max(1, falling)))
