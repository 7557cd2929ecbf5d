"""Generalised Jensen-Shannon divergence of teacher p and student q.

    beta KL(p, m) + (1 - beta) KL(q, m),  m = beta p + (1 - beta) q;  0 at p = q, at most ln 2 nats per token (at T = 1)

Convention: beta weighs the teacher. The loss vanishes as beta nears 0 or 1: tune its weight together with beta.
Until March 2025 (its pull request 3043) TRL's GKDTrainer took m = (1 - beta) p + beta q with the same weights, which
tends to reverse KL at 0 and to forward KL at 1 and agrees with the above at .5: `swap_beta` does the same.
Source: GKD, arXiv 2306.13649.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from neoplug import Divergence, Formula, log_mixture


@dataclass(eq=False)
class JensenShannon(Divergence):
    """Weighted mean of the KLs from teacher and student to their mixture."""

    beta: float = 0.5  # the teacher's share of the mixture, in (0, 1)
    swap_beta: bool = False  # the teacher's share is 1 - beta, the weights of the KLs stay: TRL until March 2025

    sums_tokens: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta < 1:
            raise ValueError(f"beta is {self.beta}, but must lie in (0, 1); its limits are forward_kl and reverse_kl")

    @property
    def formula(self) -> Formula:
        """Return beta KL(p, m) + (1 - beta) KL(q, m)."""
        return Formula(self.beta, 1 - self.beta, self._share, temperature=self.temperature)

    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return beta KL(p, m) + (1 - beta) KL(q, m)."""
        log_m = log_mixture(log_p, log_q, self._share)
        terms = self.beta * log_p.exp() * (log_p - log_m) + (1 - self.beta) * log_q.exp() * (log_q - log_m)
        return terms.sum(-1)

    def value_and_gradient(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient is (1 - beta) q (log(q / m) - KL(q, m)): that through m cancels, unless beta is swapped."""
        log_m = log_mixture(log_p, log_q, self._share)
        terms, p = log_p - log_m, log_p.exp()
        kl_teacher = terms.mul_(p).sum(-1)
        q = torch.exp(log_q, out=p)  # each of the three buffers is used twice
        kl_student = torch.sub(log_q, log_m, out=terms).mul_(q).sum(-1)
        value = kl_teacher.mul_(self.beta).add_(kl_student, alpha=1 - self.beta)
        gradient = terms.addcmul_(q, kl_student[:, None], value=-1).mul_(1 - self.beta)
        if self.swap_beta:
            over_m = log_m.neg_().add_(log_q, alpha=2).exp_()  # q^2 / m
            over_m.addcmul_(q, over_m.sum(-1, keepdim=True), value=-1)
            gradient.add_(over_m, alpha=(1 - self._share) * (self.beta - self._share) / self._share)
        return value, gradient

    @property
    def _share(self) -> float:
        """Return the teacher's share of the mixture."""
        return 1 - self.beta if self.swap_beta else self.beta
