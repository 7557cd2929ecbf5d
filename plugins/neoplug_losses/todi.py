"""Token-wise distillation of teacher p and student q: forward and reverse KL, mixed for each vocabulary entry.

    sum a_i p_i log(p_i / q_i) + (1 - a_i) q_i log(q_i / p_i),  a = p / (p + q);  0 at p = q, in nats per token

For entries that the student underestimates, forward KL dominates; for those that it overestimates, reverse KL.
Convention: a is detached, as in the paper, so the gradient is not the derivative of the value. The value is the sum of
both KLs, twice jeffreys, since a p - (1 - a) q = p - q.
Source: ToDi, arXiv 2505.16297.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from neoplug import Divergence


@dataclass(eq=False)
class ToDi(Divergence):
    """Forward and reverse KL, mixed for each vocabulary entry: forward where the student is lower than the teacher."""

    exempt: ClassVar = {"finite_differences": "the mix a is detached (ToDi, arXiv 2505.16297)"}

    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return sum a p log(p / q) + (1 - a) q log(q / p)."""
        ratio = log_q - log_p
        rest = ratio.detach().sigmoid()  # 1 - a
        return (ratio * (rest * log_q.exp() - (1 - rest) * log_p.exp())).sum(-1)

    def value_and_gradient(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient is g - q sum g, with g = q - p + (1 - a) q log(q / p) that with respect to log q."""
        q, ratio = log_q.exp(), log_q - log_p
        excess = log_p.exp().sub_(q).neg_()
        terms = excess * ratio
        value = terms.sum(-1)
        gradient = ratio.mul_(torch.sigmoid(ratio, out=terms)).mul_(q).add_(excess)
        return value, gradient.addcmul_(q, gradient.sum(-1, keepdim=True), value=-1)
