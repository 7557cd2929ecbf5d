"""Skew forward Kullback-Leibler divergence: from the teacher p to a mixture of p and the student q.

    KL(p, m),  m = alpha p + (1 - alpha) q;  0 at p = q, at most -ln(alpha) nats per token (at T = 1)

Convention: DistiLLM's, so alpha is the share of KL's first argument, p, in the mixture. At alpha = 0 it is forward_kl.
Unlike forward_kl it stays bounded where the student misses what the teacher finds likely.
Source: DistiLLM, arXiv 2402.03898 (its code leaves out the teacher's entropy, which is included here).
"""

from dataclasses import dataclass

from torch import Tensor

from neoplug import Divergence, Formula, log_mixture


@dataclass(eq=False)
class SkewForwardKL(Divergence):
    """KL from the teacher to a mixture of teacher and student."""

    alpha: float = 0.1  # the teacher's share of the mixture, in (0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha is {self.alpha}, but must lie in (0, 1); at 0 it is forward_kl, at 1 always 0")

    @property
    def formula(self) -> Formula:
        """Return KL(p, m)."""
        return Formula(teacher=1, share=self.alpha, temperature=self.temperature)

    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return sum p log(p / m)."""
        return (log_p.exp() * (log_p - log_mixture(log_p, log_q, self.alpha))).sum(-1)

    def value_and_gradient(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient is (1 - alpha) (q sum(p q / m) - p q / m)."""
        ratio = log_mixture(log_p, log_q, self.alpha).neg_().add_(log_p)
        p = log_p.exp()
        value = p.mul_(ratio).sum(-1)
        overlap = ratio.add_(log_q).exp_()  # p q / m
        total = overlap.sum(-1, keepdim=True)
        q = p.copy_(log_q).exp_()
        return value, q.mul_(total).sub_(overlap).mul_(1 - self.alpha)
