"""Weight tokens by the probability q(y) that the student gives the answer token y.

    (1 - q(y))^gamma (more on hard) or q(y)^gamma (more on easy), in [0, 1]

With cross_entropy and `more_on: hard` the value is that of the focal loss, (1 - q(y))^gamma (-ln q(y)). Its gradient
differs: the focal loss also differentiates the weight, which is a constant here.
Source: Lin et al. 2017, arXiv 1708.02002, equation 4; gamma = 2 is their best value. `easy` is neoplug's addition: a
curriculum, or protection against wrong labels.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from neoplug import hookimpl


@dataclass(eq=False)
class StudentConfidence:
    """Weight answer tokens by a power of the student's probability q(y), or of 1 - q(y)."""

    more_on: Literal["hard", "easy"] = "hard"
    gamma: float = 2.0  # above 0; larger is sharper

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise ValueError(f"gamma is {self.gamma}, but must be above 0")

    @hookimpl
    def token_weight(self, student: Tensor, labels: Tensor) -> Tensor:
        """Return the weights: [N, V] log-probabilities, [N] -> [N] in [0, 1]."""
        log_q = student.gather(-1, labels[:, None]).squeeze(-1).clamp(max=0)  # by rounding it may exceed 0
        return (-torch.expm1(log_q) if self.more_on == "hard" else log_q.exp()) ** self.gamma
