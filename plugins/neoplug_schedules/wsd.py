"""Warm-up, stable phase, decay: Hu et al. 2024, arXiv 2404.06395, sec. 4.

The form `1-sqrt` and the share of a fifth are those that Haegele et al. 2024, arXiv 2405.18392, recommend.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, cos, pi, sqrt
from typing import Literal

from neoplug import hookimpl
from neoplug_schedules.warmup import validate_ratio, warmed_up

FORMS: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + cos(pi * progress)),
    "1-sqrt": lambda progress: 1.0 - sqrt(progress),
}


@dataclass(eq=False)
class WSD:
    """A linear warm-up, a constant rate, and a decay to `min_lr_ratio` at the end."""

    decay_steps: float = 0.2  # of the run: a share below 1, or a whole number of steps
    decay_type: Literal["linear", "cosine", "1-sqrt"] = "1-sqrt"
    min_lr_ratio: float = 0.0  # of the largest rate, in [0, 1]

    def __post_init__(self) -> None:
        validate_ratio("min_lr_ratio", self.min_lr_ratio)
        if self.decay_steps < 0 or (self.decay_steps >= 1 and not float(self.decay_steps).is_integer()):
            raise ValueError(f"decay_steps is {self.decay_steps}, but is a share below 1 or a whole number of steps")

    @hookimpl
    def rate(self, step: int, total_steps: int, warmup_steps: int) -> float:
        """Return the rate of a step."""
        decay = int(self.decay_steps if self.decay_steps >= 1 else ceil(self.decay_steps * total_steps))
        stable = max(0, total_steps - warmup_steps - decay)

        def after(done: int) -> float:
            if done < stable:
                return 1.0
            falling = max(0.0, FORMS[self.decay_type](min(1.0, (done - stable) / max(1, decay))))
            return self.min_lr_ratio + (1.0 - self.min_lr_ratio) * falling

        return warmed_up(step, warmup_steps, after)
