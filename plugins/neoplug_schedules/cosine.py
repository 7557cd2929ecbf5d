"""Half a period of a cosine after a linear warm-up: Loshchilov and Hutter 2017, arXiv 1608.03983, eq. 5."""

from dataclasses import dataclass
from math import cos, pi

from neoplug import hookimpl
from neoplug_schedules.warmup import validate_ratio, warmed_up


@dataclass(eq=False)
class Cosine:
    """A linear warm-up, then half a period of a cosine down to `min_lr_ratio` at the last step."""

    min_lr_ratio: float = 0.0  # of the largest rate, in [0, 1]

    def __post_init__(self) -> None:
        validate_ratio("min_lr_ratio", self.min_lr_ratio)

    @hookimpl
    def rate(self, step: int, total_steps: int, warmup_steps: int) -> float:
        """Return the rate of a step."""

        def after(done: int) -> float:
            falling = max(0.0, 0.5 * (1.0 + cos(pi * (done / max(1, total_steps - warmup_steps)))))
            return self.min_lr_ratio + (1.0 - self.min_lr_ratio) * falling

        return warmed_up(step, warmup_steps, after)
