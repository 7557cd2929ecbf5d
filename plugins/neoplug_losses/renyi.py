"""Renyi divergence of teacher p and student q: a family around forward KL; a higher order weighs large p / q more.

    1/(alpha - 1) log sum p^alpha q^(1 - alpha);  0 at p = q, in nats per token, growing with alpha

Convention: alpha is the order and the teacher's power. Its limits are forward_kl at 1, reverse_kl at 0 (divided by
alpha), and the logarithm of the largest p / q at infinity; at .5, the default, it is twice the Bhattacharyya distance.
Source: Renyi 1961; van Erven and Harremoes 2014, arXiv 1206.2459.
"""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from neoplug import Divergence

NEAREST = 0.01  # the value is a logarithm near 0, divided by alpha - 1: nearer to 1 float32 is not precise enough


@dataclass(eq=False)
class Renyi(Divergence):
    """Renyi divergence of order alpha of teacher p and student q."""

    alpha: float = 0.5  # the order: above 0, and not 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha < inf or abs(self.alpha - 1) < NEAREST:
            limits = f"and {NEAREST} or more away from 1; at 1 it is forward_kl"
            raise ValueError(f"alpha is {self.alpha}, but must be a finite number above 0, {limits}")

    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return log sum p^alpha q^(1 - alpha) / (alpha - 1)."""
        return torch.lerp(log_q, log_p, self.alpha).logsumexp(-1) / (self.alpha - 1)

    def value_and_gradient(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient is q - w, w being p^alpha q^(1 - alpha), normalised."""
        between = torch.lerp(log_q, log_p, self.alpha)
        total = between.logsumexp(-1, keepdim=True)
        w = between.sub_(total).exp_()
        return total[:, 0] / (self.alpha - 1), log_q.exp().sub_(w)
