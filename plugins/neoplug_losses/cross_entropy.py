"""Cross-entropy of the student q with the data: the objective of a language model without a teacher.

    (1 - e) (-log q(y)) + e mean over the vocabulary of -log q;  e = label_smoothing, y the answer token, nats per token

Convention: torch's, so the target of each of the V tokens is e/V, plus 1 - e for y. V is the vocabulary that student
and teacher share. With hard labels (e = 0) it is -log q(y). The teacher is not used.
Source of the smoothing: Szegedy et al. 2015, arXiv 1512.00567.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from neoplug import Formula, hookimpl


@dataclass(eq=False)
class CrossEntropy:
    """Negative log-likelihood of the answer tokens, optionally with smoothed labels."""

    label_smoothing: float = 0.0  # the share of the target that is spread over the vocabulary, in [0, 1)

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"label_smoothing is {self.label_smoothing}, but must lie in [0, 1); at 1 the label has no effect"
            )

    exempt: ClassVar = {"zero_where_equal": "it compares with the data, not with the teacher"}

    @property
    def formula(self) -> Formula:
        """Return the cross-entropy with the label and that with the uniform distribution."""
        return Formula(label=1 - self.label_smoothing, uniform=self.label_smoothing)

    @hookimpl
    def token_loss(self, student: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy with the (smoothed) labels, [N]."""
        return self._value(student, student.gather(-1, labels[:, None]))

    @hookimpl
    def token_gradient(self, student: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy, [N], and q - (1 - e) onehot(y) - e / V, [N, V]."""
        log_q_of_label = student.gather(-1, labels[:, None])
        gradient = student.exp()
        at_label = torch.expm1(log_q_of_label)  # q - 1 without cancellation
        if self.label_smoothing:
            spread = self.label_smoothing / student.shape[-1]
            gradient.sub_(spread)
            at_label.add_(self.label_smoothing - spread)
        gradient.scatter_(-1, labels[:, None], at_label)
        return self._value(student, log_q_of_label), gradient

    def _value(self, log_q: Tensor, log_q_of_label: Tensor) -> Tensor:
        hard = -log_q_of_label[:, 0]
        if not self.label_smoothing:
            return hard
        return (1 - self.label_smoothing) * hard - self.label_smoothing * log_q.mean(-1)
