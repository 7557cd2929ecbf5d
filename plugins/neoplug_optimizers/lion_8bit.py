"""Lion (Chen et al. 2023, arXiv 2302.06675): each step is the sign of a running moment, which is stored in 8 bits.

    w <- w - lr (sign(beta_1 m + (1 - beta_1) g) + weight_decay w);   m <- beta_2 m + (1 - beta_2) g

The implementation is bitsandbytes', on CPU and CUDA. Every weight changes by the full learning rate, which should be 3
to 10 times smaller than AdamW's (the paper's advice).
"""

from dataclasses import dataclass
from math import inf
from typing import Any

import torch

from neoplug import hookimpl


@dataclass(eq=False)
class Lion8bit:
    """bitsandbytes' Lion8bit: 1 byte of state per weight; use a learning rate 3 to 10 times smaller than AdamW's."""

    betas: tuple[float, float] = (0.9, 0.99)  # beta_1 and beta_2, each in [0, 1)
    weight_decay: float = 0.0  # per step, times the learning rate; for every group that does not set its own
    min_8bit_size: int = 4096  # tensors with fewer weights keep a float32 moment

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas is {list(self.betas)}, but both must lie in [0, 1)")
        if not 0 <= self.weight_decay < inf:
            raise ValueError(f"weight_decay is {self.weight_decay}, but must be finite and not negative")
        if self.min_8bit_size < 0:
            raise ValueError(f"min_8bit_size is {self.min_8bit_size}, but must not be negative")

    @hookimpl
    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimizer over `groups`."""
        from bitsandbytes.optim import Lion8bit

        return Lion8bit(groups, **vars(self))
