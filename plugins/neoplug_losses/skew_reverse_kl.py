"""Skew reverse Kullback-Leibler divergence: from the student q to a mixture of the teacher p and q.

    KL(q, m),  m = (1 - alpha) p + alpha q;  0 at p = q, at most -ln(alpha) nats per token (at T = 1)

Convention: DistiLLM's, so alpha is the share of KL's first argument, q, in the mixture. At alpha = 0 it is reverse_kl.
Unlike reverse_kl it stays bounded where the teacher has almost no mass and the student has some.
Source: DistiLLM, arXiv 2402.03898.
"""

from dataclasses import dataclass

from torch import Tensor

from neoplug import Divergence, Formula, log_mixture


@dataclass(eq=False)
class SkewReverseKL(Divergence):
    """KL from the student to a mixture of teacher and student."""

    alpha: float = 0.1  # the student's share of the mixture, in (0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha is {self.alpha}, but must lie in (0, 1); at 0 it is reverse_kl, at 1 always 0")

    @property
    def formula(self) -> Formula:
        """Return KL(q, m)."""
        return Formula(student=1, share=1 - self.alpha, temperature=self.temperature)

    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return sum q log(q / m)."""
        return (log_q.exp() * (log_q - log_mixture(log_p, log_q, 1 - self.alpha))).sum(-1)

    def value_and_gradient(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient is q (h - sum q h), h = log(q / m) - alpha q / m; constants in h cancel."""
        ratio = log_mixture(log_p, log_q, 1 - self.alpha).neg_().add_(log_q)
        q = log_q.exp()
        share = ratio.exp()  # q / m, at most 1 / alpha
        terms = ratio.mul_(q)
        value = terms.sum(-1)
        terms.addcmul_(share, q, value=-self.alpha)
        return value, terms.addcmul_(q, terms.sum(-1, keepdim=True), value=-1)
