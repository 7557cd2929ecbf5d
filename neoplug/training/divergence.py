"""Base classes of losses that compare the distributions of teacher p and student q at a temperature.

Both distributions are softened to softmax(z / T), and the value is multiplied by T^2 before backward, so that gradients
keep their scale (Hinton, Vinyals, Dean 2015, arXiv 1503.02531). N answer tokens, V vocabulary.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import inf, log, log1p
from typing import ClassVar

import torch
from torch import Tensor

from neoplug.hookspecs import Reads, hookimpl


@dataclass(eq=False)
class Softened:
    """A loss of two softened distributions."""

    temperature: float = 1.0  # above 0; softens both distributions

    sums_tokens: ClassVar[bool] = False  # whether it is a sum over the tokens of the vocabulary

    def __post_init__(self) -> None:
        if not 0 < self.temperature < inf:
            raise ValueError(f"temperature is {self.temperature}, but must be a finite number above 0")

    @property
    def reads_teacher(self) -> Reads:
        """Return what it reads of the teacher: all of it, or buckets where it is a sum over tokens at temperature 1."""
        return "buckets" if self.sums_tokens and self.temperature == 1 else "full"

    def _soften(self, log_probabilities: Tensor) -> Tensor:
        if self.temperature == 1:  # already normalised
            return log_probabilities
        return (log_probabilities / self.temperature).log_softmax(-1)


@dataclass(eq=False)
class Divergence(Softened, ABC):
    """A divergence of p and q; subclasses implement its value and gradient at temperature 1."""

    @hookimpl
    def token_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return [N] nats, times T^2."""
        value = self.value(self._soften(teacher), self._soften(student))
        return value if self.temperature == 1 else value * self.temperature**2

    @hookimpl
    def token_gradient(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return [N] nats, times T^2, and their gradient [N, V]: T^2 from the scale, 1/T from inside the softmax."""
        value, gradient = self.value_and_gradient(self._soften(teacher), self._soften(student))
        if self.temperature == 1:
            return value, gradient
        return value.mul_(self.temperature**2), gradient.mul_(self.temperature)

    @hookimpl
    def token_loss_sparse(self, student: Tensor, ids: Tensor, probabilities: Tensor, rest: Tensor) -> Tensor:
        """Return [N] nats: the divergence over the tokens with an entry and, as one outcome, all others."""
        log_q = torch.cat([student.gather(-1, ids), log_rest(student, ids)], -1)
        return self.value(_log_outcomes(probabilities, rest), log_q)

    @hookimpl
    def token_gradient_sparse(
        self, student: Tensor, ids: Tensor, probabilities: Tensor, rest: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return [N] nats and their gradient [N, V]; that of the bucket is divided as the student divides its mass."""
        log_q_rest = log_rest(student, ids)
        log_q = torch.cat([student.gather(-1, ids), log_q_rest], -1)
        value, by_outcome = self.value_and_gradient(_log_outcomes(probabilities, rest), log_q)
        gradient = (student - log_q_rest).exp_().mul_(by_outcome[:, -1:])
        return value, gradient.scatter_(-1, ids, by_outcome[:, :-1])

    @abstractmethod
    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return the divergence [N] of log-probabilities [N, V]."""

    @abstractmethod
    def value_and_gradient(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """Return new tensors: the divergence [N] and its gradient [N, V] by the logits of q.

        Intermediate tensors of size [N, V] dominate the time and memory of a step: use few, and operate in place.
        """


def log_rest(log_q: Tensor, ids: Tensor) -> Tensor:
    """Return [N, 1]: the logarithm of the mass of all tokens but `ids` [N, K], given log-probabilities [N, V]."""
    return log_q.scatter(-1, ids, -inf).logsumexp(-1, keepdim=True)


def _log_outcomes(probabilities: Tensor, rest: Tensor) -> Tensor:
    """Return [N, K + 1]: logarithms of the entries' probabilities [N, K] and of the rest [N], none of them infinite."""
    return torch.cat([probabilities, rest[:, None]], -1).clamp(min=torch.finfo(torch.float32).tiny).log()


def log_mixture(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """Return log(share p + (1 - share) q) as a new tensor [N, V]; share in (0, 1)."""
    first, second = log_p + log(share), log_q + log1p(-share)
    return torch.logaddexp(first, second, out=None if second.requires_grad else first)
