"""Jeffreys divergence of teacher p and student q: a weighted mean of forward and reverse Kullback-Leibler divergence.

    l KL(p, q) + (1 - l) KL(q, p),  l = forward_share;  0 at p = q, in nats per token

Convention: a mean; Jeffreys has the sum, twice the default. l weighs KL(p, q), which covers the teacher's modes.
Source: Jeffreys 1946, doi 10.1098/rspa.1946.0056.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from neoplug import Divergence


@dataclass(eq=False)
class Jeffreys(Divergence):
    """Weighted mean of forward and reverse KL."""

    forward_share: float = 0.5  # of the forward KL, in (0, 1)

    sums_tokens: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.forward_share < 1:
            limits = "its limits are reverse_kl and forward_kl"
            raise ValueError(f"forward_share is {self.forward_share}, but must lie in (0, 1); {limits}")

    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return l KL(p, q) + (1 - l) KL(q, p)."""
        return both_ways(log_p, log_q, self.forward_share)

    def value_and_gradient(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient is l (q - p) + (1 - l) q (log(q / p) - KL(q, p))."""
        return both_ways_and_gradient(log_p, log_q, self.forward_share)


def both_ways(log_p: Tensor, log_q: Tensor, share: float | Tensor) -> Tensor:
    """Return share KL(p, q) + (1 - share) KL(q, p), [N]; share is a number, or a tensor [N]."""
    difference = log_p - log_q
    return share * (log_p.exp() * difference).sum(-1) - (1 - share) * (log_q.exp() * difference).sum(-1)


def both_ways_and_gradient(log_p: Tensor, log_q: Tensor, share: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return `both_ways`, [N], and its gradient with respect to the logits of q, [N, V], at constant share."""
    terms, p = log_q - log_p, log_p.exp()
    forward = (terms * p).sum(-1).neg_()
    q = log_q.exp()
    reverse = terms.mul_(q).sum(-1)
    value = share * forward + (1 - share) * reverse
    by_row = share[:, None] if isinstance(share, Tensor) else share
    terms.addcmul_(q, reverse[:, None], value=-1).mul_(1 - by_row)
    return value, terms.add_(q.sub_(p).mul_(by_row))
