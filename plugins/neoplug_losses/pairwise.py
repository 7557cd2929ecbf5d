"""Pairwise ranking: a penalty for each pair of the teacher's k best tokens that the student orders differently.

    mean over pairs i above j of phi(margin - (z_i - z_j)),  phi = log(1 + exp) or max(0, .), in nats per token

i is the one that the teacher ranks higher, z the student's logits. `logistic` with margin 0 is RankNet,
-log sigmoid(z_i - z_j). `hinge` with margin 0 is 0 where the order is right. Only the teacher's order counts, not its
probabilities.
Convention: the mean over all k (k - 1) / 2 pairs; ties of the teacher have no order and add nothing. Only the
hinge with margin 0 is 0 at p = q; any other is above 0 there and falls further as the student's gaps grow.
Cost: a `topk` of the teacher's row; the rest is k^2. Entries other than these k have no gradient: add another loss.
Source: RankNet, Burges et al. 2005; hinge: Herbrich, Graepel, Obermayer 2000. For distillation BiLD, arXiv 2406.13555,
takes pairs of the top 8 too, but matches their differences.
"""

from dataclasses import dataclass
from math import inf
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import softplus

from neoplug import hookimpl

Surrogate = Literal["logistic", "hinge"]


@dataclass(eq=False)
class Pairwise:
    """A penalty for each pair of the teacher's k most likely tokens that the student orders differently."""

    k: int = 8  # 2 or more
    surrogate: Surrogate = "logistic"
    margin: float = 0.0  # 0 or more; gap of student logits, in nats, below which a correctly ordered pair is penalised

    def __post_init__(self) -> None:
        if self.k < 2:
            raise ValueError(f"k is {self.k}, but must be 2 or more, since one token has no order")
        if self.surrogate not in get_args(Surrogate):
            raise ValueError(f"surrogate is {self.surrogate!r}, but must be one of {', '.join(get_args(Surrogate))}")
        if not 0 <= self.margin < inf:
            raise ValueError(f"margin is {self.margin}, but must be a finite number, 0 or more")

    @property
    def exempt(self) -> dict[str, str]:
        """Return the properties of losses that do not hold here, each with its reason."""
        reasons = {}
        if self.surrogate == "logistic" or self.margin > 0:
            reasons["zero_where_equal"] = "a gap wider than the teacher's lowers it further"
        if self.surrogate == "hinge":
            reasons["finite_differences"] = "a hinge has a corner"
        return reasons

    @hookimpl
    def token_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the mean penalty of a pair, [N]."""
        _, shortfall, weight = self._pairs(student, teacher)
        return (weight * (softplus(shortfall) if self.surrogate == "logistic" else shortfall.relu())).sum((1, 2))

    @hookimpl
    def token_gradient(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return the value, [N], and its gradient, [N, V]: 0 but at the teacher's k best."""
        best, shortfall, weight = self._pairs(student, teacher)
        if self.surrogate == "logistic":
            penalty, slope = softplus(shortfall), shortfall.sigmoid()
        else:
            penalty, slope = shortfall.relu(), (shortfall > 0).to(shortfall.dtype)
        slope *= weight
        gradient = torch.zeros_like(student).scatter_(-1, best, slope.sum(1) - slope.sum(2))
        return penalty.mul_(weight).sum((1, 2)), gradient

    def _pairs(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the k best tokens, [N, k]; margin - (z_i - z_j), [N, k, k]; and each pair's weight in the mean.

        The weight is 0 where the teacher does not rank i above j.
        """
        k = min(self.k, teacher.shape[-1])
        log_p, best = teacher.topk(k, -1)
        log_q = student.gather(-1, best)
        above = log_p[:, :, None] > log_p[:, None, :]
        shortfall = self.margin - (log_q[:, :, None] - log_q[:, None, :])
        return best, shortfall, above.to(shortfall.dtype) * (2 / (k * (k - 1)))
