"""Adaptive KL of teacher p and student q: forward KL weighted by the error on p's head, reverse KL by that on its tail.

    g_h/(g_h + g_t) KL(p, q) + g_t/(g_h + g_t) KL(q, p);  0 at p = q, in nats per token
    g_h, g_t  the sums of |p - q| over the head and over the tail; constants: no gradient runs through them

Convention: the head is the smallest set of likeliest tokens whose mass reaches mu. The token that crosses mu belongs to
it, and so does every equally likely token. (The authors' code puts the crossing token in the tail, unless it is the
likeliest.)
The vocabulary is sorted for each token, which makes this the most expensive of the KLs.
Source: AKL, arXiv 2404.02657, section 5.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from neoplug import Divergence
from neoplug_losses.jeffreys import both_ways, both_ways_and_gradient


@dataclass(eq=False)
class AdaptiveKL(Divergence):
    """Forward and reverse KL, mixed per answer token by the student's error on likely and on unlikely tokens."""

    exempt: ClassVar = {"finite_differences": "the weights of both KLs are constants (AKL, arXiv 2404.02657)"}

    mu: float = 0.5  # the mass of the head, in (0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mu < 1:
            raise ValueError(f"mu is {self.mu}, but must lie in (0, 1); with all in the head it is forward_kl")

    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return the mix of both KLs."""
        return both_ways(log_p, log_q, self._share(log_p, log_q.detach()))

    def value_and_gradient(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient is the same mix of the gradients of both KLs."""
        return both_ways_and_gradient(log_p, log_q, self._share(log_p, log_q))

    def _share(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return the head's share of the sum of |p - q|, [N]; 0 where p = q."""
        p = log_p.exp()
        head = p >= _head_threshold(p, self.mu)
        errors = p.sub_(log_q.exp()).abs_()
        total = errors.sum(-1)
        return errors.mul_(head).sum(-1) / total.clamp_(min=torch.finfo(total.dtype).tiny)


def _head_threshold(p: Tensor, mu: float) -> Tensor:
    """Return the smallest probability in the head, [N, 1]: that of the token which crosses mu."""
    descending = p.sort(-1, descending=True).values
    crossing = (descending.cumsum(-1) < mu).sum(-1, keepdim=True)
    return descending.gather(-1, crossing.clamp_(max=p.shape[-1] - 1))  # by rounding, all of p may sum to less than mu
