"""Adafactor (Shazeer, Stern 2018, arXiv 1804.04235): the running squares of a matrix are stored as row and column
means, r + c numbers for r x c weights.

Convention: the recipe's learning rate is used as it is. It is not scaled by the size of the weights, which would almost
freeze a matrix that starts at 0, as LoRA's B, and not replaced by the paper's schedule.
"""

from dataclasses import dataclass
from math import inf
from typing import Any

import torch

from neoplug import hookimpl


@dataclass(eq=False)
class Adafactor:
    """transformers' Adafactor, as in its Trainer with `scale_parameter` and `relative_step` off."""

    eps: float = 1e-30  # added to each squared gradient, above 0; transformers' eps[0] (eps[1] has no effect here)
    clip_threshold: float = 1.0  # largest root mean square of an update; larger ones are scaled down; above 0
    decay_rate: float = -0.8  # below 0: at step t the running squares decay by 1 - t^decay_rate
    weight_decay: float = 0.0  # per step, times the learning rate; for every group that does not set its own

    def __post_init__(self) -> None:
        for name in ("eps", "clip_threshold"):
            if not 0 < getattr(self, name) < inf:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be a finite number above 0")
        if not -inf < self.decay_rate < 0:
            raise ValueError(f"decay_rate is {self.decay_rate}, but must be a finite number below 0")
        if not 0 <= self.weight_decay < inf:
            raise ValueError(f"weight_decay is {self.weight_decay}, but must be finite and not negative")

    @hookimpl
    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimizer over `groups`."""
        from transformers.optimization import Adafactor

        options = vars(self) | {"eps": (self.eps, 1e-3), "scale_parameter": False, "relative_step": False}
        return Adafactor(groups, **options)
