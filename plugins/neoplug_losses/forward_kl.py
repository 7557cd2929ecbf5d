"""Forward Kullback-Leibler divergence of teacher p and student q: the classic distillation loss, mass-covering.

    KL(p, q) = sum p log(p / q);  0 at p = q, in nats per token

Convention: the teacher's entropy is included. torchtune and DistiLLM leave it out and report the cross-entropy
-sum p log q under the name "forward KL": `omit_teacher_entropy` does so too. The gradient is the same.
Source: Hinton, Vinyals, Dean 2015, arXiv 1503.02531.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from neoplug import Divergence, Formula, Reads, hookimpl


@dataclass(eq=False)
class ForwardKL(Divergence):
    """KL from the teacher to the student: mass-covering."""

    omit_teacher_entropy: bool = False  # report -sum p log q, as the code of torchtune and DistiLLM does

    sums_tokens: ClassVar[bool] = True

    @property
    def reads_teacher(self) -> Reads:
        """Return "linear": at temperature 1 the gradient, q - p, is linear in p."""
        return "linear" if self.temperature == 1 else "full"

    @property
    def exempt(self) -> dict[str, str]:
        """Return the properties of losses that do not hold here, each with its reason."""
        left_out = {"zero_where_equal": "the teacher's entropy is left out, as torchtune and DistiLLM do"}
        return left_out if self.omit_teacher_entropy else {}

    @property
    def formula(self) -> Formula | None:
        """Return KL(p, q), from whose value the teacher's entropy is not left out."""
        return None if self.omit_teacher_entropy else Formula(teacher=1, temperature=self.temperature)

    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return sum p log(p / q), or -sum p log q."""
        return (log_p.exp() * (-log_q if self.omit_teacher_entropy else log_p - log_q)).sum(-1)

    def value_and_gradient(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient is q - p."""
        p, terms = log_p.exp(), -log_q if self.omit_teacher_entropy else log_p - log_q
        value = terms.mul_(p).sum(-1)
        return value, torch.exp(log_q, out=terms).sub_(p)

    @hookimpl
    def token_loss_sparse(  # type: ignore[override]  # a hook takes any subset of the arguments
        self, student: Tensor, ids: Tensor, probabilities: Tensor, rest: Tensor | None, teacher_entropy: Tensor
    ) -> Tensor:
        """Return [N] nats; of sampled entries -sum p log q less the teacher's entropy: exact in expectation."""
        if rest is not None:
            return super().token_loss_sparse(student, ids, probabilities, rest)
        cross_entropy = -(probabilities * student.gather(-1, ids)).sum(-1)
        return cross_entropy if self.omit_teacher_entropy else cross_entropy - teacher_entropy

    @hookimpl
    def token_gradient_sparse(  # type: ignore[override]
        self, student: Tensor, ids: Tensor, probabilities: Tensor, rest: Tensor | None, teacher_entropy: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return [N] nats and q - p, [N, V]."""
        if rest is not None:
            return super().token_gradient_sparse(student, ids, probabilities, rest)
        value = self.token_loss_sparse(student, ids, probabilities, rest, teacher_entropy)
        return value, student.exp().scatter_add_(-1, ids, -probabilities)
