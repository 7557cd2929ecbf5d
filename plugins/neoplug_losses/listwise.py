"""Listwise ranking: the likelihood under the student of the teacher's k best tokens in the teacher's order.

    -log prod_m q(t_m) / (1 - q(t_1) - ... - q(t_{m-1})),  t_1, ..., t_k the teacher's k best, in nats per token

This is the Plackett-Luce model of k draws without replacement (ListMLE, Xia et al. 2008). k = 1 is cross_entropy with
the teacher's most likely token as label. Only the teacher's order counts, not its probabilities.
Convention: the sum over the k draws. It is no divergence: at p = q it is -log of the order's likelihood, above 0.
Where the teacher has ties, their order is arbitrary.
Cost: a `topk` of the teacher's row, in addition to one log-sum-exp of the student's.
Source: Frydenlund, Singh, Rudzicz 2022, arXiv 2110.06961, for language models; PLD, arXiv 2506.12542, weighs the draws.
"""

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from neoplug import hookimpl


@dataclass(eq=False)
class Listwise:
    """Negative log-likelihood, under the student, of the order of the teacher's k most likely tokens."""

    k: int = 8  # 1 or more; at most V - 1 count, since the last draw is determined

    exempt: ClassVar = {"zero_where_equal": "the likelihood of an order is below 1 even under the teacher"}

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k is {self.k}, but must be 1 or more")

    @hookimpl
    def token_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the sum over the draws of -log(q of the drawn token / mass not drawn before), [N]."""
        best = self._best(teacher)
        drawn = student.gather(-1, best)
        return (_left(student, best, drawn) - drawn).sum(-1)

    @hookimpl
    def token_gradient(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """An entry's gradient is the sum of its probabilities in all draws up to its own, minus 1 if it is drawn."""
        best = self._best(teacher)
        drawn = student.gather(-1, best)
        left = _left(student, best, drawn)
        draws = (-left).logcumsumexp(-1)  # log sum 1 / left, up to each draw
        gradient = (student + draws[:, -1:]).exp_()  # entries that are never drawn take part in all draws
        gradient.scatter_(-1, best, (drawn + draws).exp() - 1)
        return (left - drawn).sum(-1), gradient

    def _best(self, teacher: Tensor) -> Tensor:
        return teacher.topk(min(self.k, teacher.shape[-1] - 1), -1).indices


def _left(student: Tensor, best: Tensor, drawn: Tensor) -> Tensor:
    """Return the log of the mass not drawn before each draw, [N, k]: sums from the end, since 1 - ... would cancel."""
    never_drawn = student.scatter(-1, best, -inf).logsumexp(-1, keepdim=True)
    return torch.cat([drawn, never_drawn], -1).flip(-1).logcumsumexp(-1).flip(-1)[:, :-1]
