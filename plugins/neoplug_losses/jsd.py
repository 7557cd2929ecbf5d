"""Generalised Jensen-Shannon divergence of teacher p and student q.

    beta KL(p, m) + (1 - beta) KL(q, m),  m = beta p + (1 - beta) q;  0 at p = q, at most ln 2 nats per token (at T = 1)

Convention: beta weighs the teacher (some libraries swap it). It vanishes at both ends: tune the weight with beta.
Source: GKD, arXiv 2306.13649.
"""

from dataclasses import dataclass
from math import log, log1p

import torch
from torch import Tensor

from neoplug_losses.divergence import Divergence


@dataclass(eq=False)
class JensenShannon(Divergence):
    """Both KLs to the mixture m."""

    beta: float = 0.5  # the teacher's share of the mixture, in (0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta < 1:
            raise ValueError(f"beta is {self.beta}, but must lie in (0, 1); its limits are forward_kl and reverse_kl")

    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return beta KL(p, m) + (1 - beta) KL(q, m)."""
        log_m = torch.logaddexp(log_p + log(self.beta), log_q + log1p(-self.beta))
        terms = self.beta * log_p.exp() * (log_p - log_m) + (1 - self.beta) * log_q.exp() * (log_q - log_m)
        return terms.sum(-1)

    def value_and_gradient(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient is (1 - beta) q (log(q / m) - KL(q, m)): what m contributes cancels."""
        log_m, terms = log_p + log(self.beta), log_q + log1p(-self.beta)
        torch.logaddexp(log_m, terms, out=log_m)
        p = log_p.exp()
        to_teacher = torch.sub(log_p, log_m, out=terms).mul_(p).sum(-1)
        q = torch.exp(log_q, out=p)  # each of the three buffers serves twice
        to_student = torch.sub(log_q, log_m, out=terms).mul_(q).sum(-1)
        value = to_teacher.mul_(self.beta).add_(to_student, alpha=1 - self.beta)
        return value, terms.addcmul_(q, to_student[:, None], value=-1).mul_(1 - self.beta)
