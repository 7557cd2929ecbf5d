"""Adam with decoupled weight decay (Loshchilov, Hutter 2019, arXiv 1711.05101), as torch has it.

Convention: no weight decay by default, as in LLM-Neo.
"""

from dataclasses import dataclass
from math import inf
from typing import Any

import torch

from neoplug import hookimpl
from neoplug_optimizers.fused import can_fuse


@dataclass(eq=False)
class AdamW:
    """torch.optim.AdamW, fused where torch supports it."""

    betas: tuple[float, float] = (0.9, 0.999)  # decay of the running mean and of the running square, each in [0, 1)
    eps: float = 1e-8  # above 0
    weight_decay: float = 0.0  # per step, times the learning rate; for every group that does not set its own

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas is {list(self.betas)}, but both must lie in [0, 1)")
        if not 0 < self.eps < inf:
            raise ValueError(f"eps is {self.eps}, but must be a finite number above 0")
        if not 0 <= self.weight_decay < inf:
            raise ValueError(f"weight_decay is {self.weight_decay}, but must be finite and not negative")

    @hookimpl
    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimizer over `groups`."""
        return torch.optim.AdamW(
            groups, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=can_fuse(groups)
        )
