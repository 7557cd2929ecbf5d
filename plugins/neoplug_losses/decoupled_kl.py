"""Decoupled KL of teacher p and student q: separate weights for the answer token and for the other tokens.

    alpha KL(b_p, b_q) + beta KL(p^, q^);  0 at p = q, in nats per token

b_p = (p(y), 1 - p(y)) for the answer token y; p^ is p without y, renormalised. Forward KL is this with alpha = 1 and
beta = 1 - p(y): where the teacher is certain of the answer token, the other tokens hardly count.
Convention: times T^2, and y is the label, whether or not the teacher agrees. log(1 - p(y)) is computed as a sum over
the other tokens, which stays exact where p(y) rounds to 1.
Source: DKD, arXiv 2203.08679 (there beta up to 10, T = 4, on images).
"""

from dataclasses import dataclass
from math import inf

from torch import Tensor

from neoplug import Softened, hookimpl


@dataclass(eq=False)
class DecoupledKL(Softened):
    """KL of the answer token against all others, plus KL among the others, each with its own weight."""

    alpha: float = 1.0  # 0 or more; weight of the KL of the answer token against all others
    beta: float = 0.5  # 0 or more; weight of the KL among the others

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "beta"):
            if not 0 <= getattr(self, name) < inf:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be a finite number, 0 or more")

    @hookimpl
    def token_loss(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Return alpha KL(b_p, b_q) + beta KL(p^, q^), [N], times T^2."""
        y, log_p, log_q = labels[:, None], self._soften(teacher), self._soften(student)
        log_p_rest, log_q_rest = (z.scatter(-1, y, -inf).logsumexp(-1, keepdim=True) for z in (log_p, log_q))
        target = _terms(log_p.gather(-1, y), log_q.gather(-1, y)) + _terms(log_p_rest, log_q_rest)
        p = (log_p - log_p_rest).exp().scatter(-1, y, 0.0)
        others = (p * (log_p - log_q - (log_p_rest - log_q_rest))).sum(-1)
        return (self.alpha * target[:, 0] + self.beta * others) * self.temperature**2

    @hookimpl
    def token_gradient(self, student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient is alpha (q(y) - p(y)) at y and beta (q^ - p^) - alpha (q(y) - p(y)) q^ elsewhere, times T."""
        y, log_p, log_q = labels[:, None], self._soften(teacher), self._soften(student)
        (log_p_rest, p), (log_q_rest, q) = _exclude(y, log_p), _exclude(y, log_q)
        target = _terms(log_p.gather(-1, y), log_q.gather(-1, y)) + _terms(log_p_rest, log_q_rest)
        others = (log_p - log_q).sub_(log_p_rest - log_q_rest).mul_(p).sum(-1)
        by_target = (log_p_rest.exp() - log_q_rest.exp()) * self.alpha  # q(y) - p(y)
        gradient = q.mul_(self.beta - by_target).sub_(p, alpha=self.beta).scatter_(-1, y, by_target)
        value = target[:, 0].mul_(self.alpha).add_(others, alpha=self.beta)
        return value.mul_(self.temperature**2), gradient.mul_(self.temperature)


def _exclude(y: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """Return log(1 - p(y)), [N, 1], and p^, [N, V], 0 at y, with a single exponential over the vocabulary."""
    others = log_p.scatter(-1, y, -inf)
    largest = others.amax(-1, keepdim=True)
    total = others.sub_(largest).exp_().sum(-1, keepdim=True)
    return total.log().add_(largest), others.div_(total)


def _terms(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return p log(p / q) element by element."""
    return log_p.exp() * (log_p - log_q)
