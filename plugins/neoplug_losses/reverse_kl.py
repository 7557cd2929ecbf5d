"""Reverse Kullback-Leibler divergence of teacher p and student q: mode-seeking.

    KL(q, p) = sum q log(q / p);  0 at p = q, in nats per token

Convention: "reverse" means that the student is the first argument.
Source: MiniLLM, arXiv 2306.08543 (there on the student's own samples; here on the answer tokens).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from neoplug import Divergence, Formula


@dataclass(eq=False)
class ReverseKL(Divergence):
    """KL from the student to the teacher: mode-seeking."""

    sums_tokens: ClassVar[bool] = True

    @property
    def formula(self) -> Formula:
        """Return KL(q, p)."""
        return Formula(student=1, share=1, temperature=self.temperature)

    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return sum q log(q / p)."""
        return (log_q.exp() * (log_q - log_p)).sum(-1)

    def value_and_gradient(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient is q (log(q / p) - KL(q, p))."""
        q, terms = log_q.exp(), log_q - log_p
        value = terms.mul_(q).sum(-1)
        return value, terms.addcmul_(q, value[:, None], value=-1)
