"""Base classes of losses that compare the distributions of teacher p and student q at a temperature.

Both distributions are softened to softmax(z / T), and the value is multiplied by T^2 before backward, so that gradients
keep their scale (Hinton, Vinyals, Dean 2015, arXiv 1503.02531). N answer tokens, V vocabulary.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import inf, log, log1p

import torch
from torch import Tensor

from neoplug.hookspecs import hookimpl


@dataclass(eq=False)
class Softened:
    """A loss of two softened distributions."""

    temperature: float = 1.0  # above 0; softens both distributions

    def __post_init__(self) -> None:
        if not 0 < self.temperature < inf:
            raise ValueError(f"temperature is {self.temperature}, but must be a finite number above 0")

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

    @abstractmethod
    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return the divergence [N] of log-probabilities [N, V]."""

    @abstractmethod
    def value_and_gradient(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """Return new tensors: the divergence [N] and its gradient [N, V] by the logits of q.

        Intermediate tensors of size [N, V] dominate the time and memory of a step: use few, and operate in place.
        """


def log_mixture(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """Return log(share p + (1 - share) q) as a new tensor [N, V]; share in (0, 1)."""
    first, second = log_p + log(share), log_q + log1p(-share)
    return torch.logaddexp(first, second, out=None if second.requires_grad else first)
