"""Jeffreys divergence of teacher and student: the mean of KL in both directions (Jeffreys 1946), in nats per token."""

from dataclasses import dataclass

from torch import Tensor, log_softmax

from neoplug import hookimpl


@dataclass(eq=False)
class Jeffreys:
    """The mean of forward and reverse KL, times T^2 at temperature T."""

    temperature: float = 1.0

    @hookimpl
    def token_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """[N, V] log-probabilities -> [N] nats."""
        log_p, log_q = log_softmax(teacher / self.temperature, -1), log_softmax(student / self.temperature, -1)
        return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1) / 2 * self.temperature**2
