"""Calibration: whether a token that the model predicts with a probability of 70 % is right 70 % of the time.

    ece    sum over bins of equal width: share |accuracy - confidence| of the top token (Guo et al. 2017, 1706.04599)
    brier  mean over tokens of sum_k (q_k - [k = y])^2, between 0 and 2 (Brier 1950, multi-class)

Both over held-out answer tokens; lower is better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neoplug import hookimpl

if TYPE_CHECKING:
    from neoplug import Batch

Predict = Callable[[torch.nn.Module, "Batch"], Iterator[tuple[Tensor, Tensor]]]


@dataclass(eq=False)
class Calibration:
    """Expected calibration error and Brier score of next-token predictions on held-out answers."""

    bins: int = 15  # bins of the calibration error, at least 1

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise ValueError(f"bins is {self.bins}, but must be at least 1")

    @hookimpl
    def on_evaluate(self, model: torch.nn.Module, batches: Iterable[Batch], predict: Predict) -> dict[str, Any]:
        """Return {ece, brier}, each None if there is no answer token."""
        scores = [_score(log_q, labels) for batch in batches for log_q, labels in predict(model, batch)]
        if not scores:
            return {"ece": None, "brier": None}
        confidence, right, brier = torch.cat(scores, dim=1).cpu().double()
        return {"ece": self._calibration_error(confidence, right), "brier": brier.mean().item()}

    def _calibration_error(self, confidence: Tensor, right: Tensor) -> float:
        """Return the expected calibration error; a bin reaches from above its lower edge up to its upper edge."""
        bin_of = (confidence * self.bins).ceil().long().clamp(1, self.bins) - 1
        gaps = torch.bincount(bin_of, right - confidence, self.bins)  # count x (accuracy - confidence)
        return gaps.abs().sum().item() / len(confidence)


def _score(log_q: Tensor, labels: Tensor) -> Tensor:
    """Return [3, n]: confidence of the top token, whether it is right, Brier score; from log-probabilities [n, V]."""
    top, guess = log_q.max(-1)
    of_label = log_q.gather(-1, labels[:, None])[:, 0].exp()
    brier = (2 * log_q).exp().sum(-1) - 2 * of_label + 1
    return torch.stack([top.exp(), (guess == labels).to(top.dtype), brier])
