"""Total variation distance of teacher p and student q: the mass that must move to turn one into the other.

    1/2 sum |p - q|;  0 at p = q, at most 1 (at T = 1)

Convention: with the half. Entries with p = q count as gradient 0; for the others the gradient does not shrink as q
nears p, and it vanishes for tokens to which the student gives no mass.
Source: f-DISTILL, arXiv 2307.15190; DistiLLM's code has it as tv_distance.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from neoplug import Divergence


@dataclass(eq=False)
class TotalVariation(Divergence):
    """Half the L1 distance of teacher and student."""

    sums_tokens: ClassVar[bool] = True
    exempt: ClassVar = {"finite_differences": "it has a kink wherever an entry of p equals that of q"}

    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return 1/2 sum |p - q|."""
        return (log_q.exp() - log_p.exp()).abs().sum(-1) / 2

    def value_and_gradient(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient is q (s - sum q s) / 2, s = sign(q - p)."""
        q = log_q.exp()
        difference = log_p.exp().neg_().add_(q)
        value = difference.abs().sum(-1).div_(2)
        terms = difference.sign_().mul_(q).div_(2)
        return value, terms.addcmul_(q, terms.sum(-1, keepdim=True), value=-1)
