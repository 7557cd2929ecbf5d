"""Pairwise ranking: the student is to order every two of the teacher's k best as the teacher does.

    mean over pairs i above j of phi(margin - (z_i - z_j)),  phi = log(1 + exp) or max(0, .), in nats per token

`logistic` with margin 0 is RankNet: -log of the chance, by z_i against z_j, that i goes first. `hinge` with margin 0
asks for the order alone, and is 0 once that is right. The teacher's order counts, not how sure it is of it.
Convention: the mean over all k (k - 1) / 2 pairs; those that the teacher ties have no order and add nothing. No
divergence, but for the hinge with margin 0: any other has a price at p = q, which gaps wider than the teacher's lower.
Cost: `topk` passes over the teacher's row; the rest is k^2. Beside the k no entry has a gradient: mix in another loss.
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
    """A price for each two of the teacher's best that the student does not order as it does."""

    k: int = 8  # 2 or more
    surrogate: Surrogate = "logistic"
    margin: float = 0.0  # 0 or more; how far apart they are to be, in nats

    def __post_init__(self) -> None:
        if self.k < 2:
            raise ValueError(f"k is {self.k}, but must be 2 or more: one alone has no order")
        if self.surrogate not in get_args(Surrogate):
            raise ValueError(f"surrogate is {self.surrogate!r}, but must be one of {', '.join(get_args(Surrogate))}")
        if not 0 <= self.margin < inf:
            raise ValueError(f"margin is {self.margin}, but must be a finite number, 0 or more")

    @property
    def exempt(self) -> dict[str, str]:
        """Say which properties of a loss do not hold."""
        found = {}
        if self.surrogate == "logistic" or self.margin > 0:
            found["zero_where_equal"] = "a wider gap than the teacher's is cheaper still"
        if self.surrogate == "hinge":
            found["finite_differences"] = "a hinge has a corner"
        return found

    @hookimpl
    def token_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the mean price of a pair, [N]."""
        _, short, weight = self._pairs(student, teacher)
        return (weight * (softplus(short) if self.surrogate == "logistic" else short.relu())).sum((1, 2))

    @hookimpl
    def token_gradient(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return it, [N], and what lifts the upper and presses the lower of each pair, [N, V], 0 beside the k."""
        best, short, weight = self._pairs(student, teacher)
        if self.surrogate == "logistic":
            price, slope = softplus(short), short.sigmoid()
        else:
            price, slope = short.relu(), (short > 0).to(short.dtype)
        slope *= weight
        gradient = torch.zeros_like(student).scatter_(-1, best, slope.sum(1) - slope.sum(2))
        return price.mul_(weight).sum((1, 2)), gradient

    def _pairs(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the k best, [N, k]; how much i lacks of the margin above j, [N, k, k]; and the weight of the pair."""
        k = min(self.k, teacher.shape[-1])
        order, best = teacher.topk(k, -1)
        chosen = student.gather(-1, best)
        above = order[:, :, None] > order[:, None, :]
        short = self.margin - (chosen[:, :, None] - chosen[:, None, :])
        return best, short, above.to(short.dtype) * (2 / (k * (k - 1)))
