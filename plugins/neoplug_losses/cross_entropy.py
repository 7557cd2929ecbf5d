"""Cross-entropy of the student q with the data: what a language model is trained on without a teacher.

    -log q(y) for the answer token y, in nats per token

Convention: hard labels, no smoothing; the teacher is not looked at.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from neoplug.hookspecs import hookimpl


@dataclass(eq=False)
class CrossEntropy:
    """Negative log-likelihood of the answer tokens."""

    exempt: ClassVar = {"zero_where_equal": "it compares with the data, not with the teacher"}

    @hookimpl
    def token_loss(self, student: Tensor, labels: Tensor) -> Tensor:
        """Return -log q(y), [N]."""
        return -student.gather(-1, labels[:, None])[:, 0]

    @hookimpl
    def token_gradient(self, student: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return -log q(y), [N], and q - onehot(y), [N, V]."""
        log_q_of_label = student.gather(-1, labels[:, None])
        gradient = student.exp()
        gradient.scatter_(-1, labels[:, None], torch.expm1(log_q_of_label))  # q - 1 without cancellation
        return -log_q_of_label[:, 0], gradient
