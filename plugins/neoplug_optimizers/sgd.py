"""Stochastic gradient descent with momentum, as torch has it."""

from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from neoplug import hookimpl
from neoplug_optimizers.fused import can_fuse


@dataclass(eq=False)
class SGD:
    """torch.optim.SGD with momentum, fused where torch supports it."""

    momentum: float = 0.0  # in [0, 1)
    nesterov: bool = False  # needs momentum
    weight_decay: float = 0.0  # added to the gradient; for every group that does not set its own

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}, but must lie in [0, 1)")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0, as momentum: 0.9")
        if not 0 <= self.weight_decay < inf:
            raise ValueError(f"weight_decay is {self.weight_decay}, but must be finite and not negative")

    @hookimpl
    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimizer over `groups`."""
        return torch.optim.SGD(
            groups,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            fused=can_fuse(groups) and not any(isinstance(p, DTensor) for group in groups for p in group["params"]),
        )
