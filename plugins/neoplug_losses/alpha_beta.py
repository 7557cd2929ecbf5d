"""Alpha-beta divergence of teacher p and student q: a family that ranges from mode-covering to mode-seeking.

    -1/(a b) sum [p^a q^b - a/(a+b) p^(a+b) - b/(a+b) q^(a+b)],  a = alpha, b = beta;  0 at p = q

Convention: a is the teacher's power. (1, 0) is forward_kl, (0, 1) is reverse_kl, (.5, .5) four times hellinger; the
limits at a = 0 and at b = 0 are exact. Nats per token where a + b = 1; other sums weigh likely tokens more or less.
Source: ABKD, arXiv 2505.04560; the divergence is Cichocki, Cruces and Amari's 2011, doi 10.3390/e13010134.
"""

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from neoplug import Divergence

LEAST = 0.01  # a difference of powers is divided by alpha and by beta: for smaller ones float32 is not precise enough


@dataclass(eq=False)
class AlphaBeta(Divergence):
    """Alpha-beta divergence of teacher p and student q.

    Computed as sum(U + W) / (a + b), U = (q^(a+b) - p^a q^b) / a and W = (p^(a+b) - p^a q^b) / b.
    """

    alpha: float = 0.5  # 0, or at least 0.01; not 0 together with beta
    beta: float = 0.5  # 0, or at least 0.01

    sums_tokens: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, power in (("alpha", self.alpha), ("beta", self.beta)):
            if power != 0 and not LEAST <= power < inf:
                limits = "alpha 1 and beta 0 are forward_kl, alpha 0 and beta 1 reverse_kl"
                raise ValueError(f"{name} is {power}, but must be 0, or finite and at least {LEAST}; {limits}")
        if self.alpha == self.beta == 0:
            raise ValueError("alpha is 0 and so is beta, but one must be above 0; the closest loss is logit_mse")

    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return the divergence."""
        u, w = self._parts(log_p, log_q)
        return (u + w).sum(-1) / (self.alpha + self.beta)

    def value_and_gradient(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient is U - q sum U."""
        u, w = self._parts(log_p, log_q)
        value = w.add_(u).sum(-1).div_(self.alpha + self.beta)
        q = torch.exp(log_q, out=w)
        return value, u.addcmul_(q, u.sum(-1, keepdim=True), value=-1)

    def _parts(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """Return U and W, [N, V] each. Where alpha or beta is 0, its quotient is replaced by the limit, a logarithm."""
        overlap = torch.add(log_p * self.alpha, log_q, alpha=self.beta).exp()
        total = self.alpha + self.beta
        u = ((log_q * total).exp() - overlap) / self.alpha if self.alpha else overlap * (log_q - log_p)
        w = ((log_p * total).exp() - overlap) / self.beta if self.beta else overlap * (log_p - log_q)
        return u, w
