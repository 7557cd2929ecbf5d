"""Squared Hellinger distance of teacher p and student q: symmetric, bounded, and finite where either probability is 0.

    1 - sum sqrt(p q) = 1/2 sum (sqrt(p) - sqrt(q))^2;  0 at p = q, at most 1 (at T = 1)

Convention: squared, with the half: so 1 - the Bhattacharyya coefficient, and a quarter of alpha_beta at (.5, .5).
Source: Hellinger 1909, doi 10.1515/crll.1909.136.210.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from neoplug import Divergence


@dataclass(eq=False)
class Hellinger(Divergence):
    """Half the squared Euclidean distance between the square roots of teacher p and student q."""

    sums_tokens: ClassVar[bool] = True

    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return 1/2 sum (sqrt(p) - sqrt(q))^2."""
        return ((log_q / 2).exp() - (log_p / 2).exp()).square().sum(-1) / 2

    def value_and_gradient(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient is (sqrt(q) (sqrt(q) - sqrt(p)) - q H^2) / 2, H^2 the value."""
        root_q = (log_q / 2).exp_()
        difference = (log_p / 2).exp_().neg_().add_(root_q)
        value = difference.square().sum(-1).div_(2)
        return value, difference.addcmul_(root_q, value[:, None], value=-1).mul_(root_q).div_(2)
