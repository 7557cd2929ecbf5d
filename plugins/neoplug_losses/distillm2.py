"""DistiLLM-2: skew forward and skew reverse KL of teacher p and student q, without rollouts.

    (1 - s) KL(p, alpha p + (1 - alpha) q) + s KL(q, (1 - alpha) p + alpha q);  0 at p = q, in nats per token

s is 1/2. With `gradual_beta` it grows linearly from 1/2 to 3/4 in the first half of the run and stays there, which
favours the reverse KL: the paper's curriculum, off by default as in its code. Two parts of the paper are not
implemented. Its contrastive data: the forward term on answers of the teacher and the reverse term on answers of the
student, which needs rollouts; here both terms use the same answer tokens. Its rule for alpha, which compares the
probabilities of a whole answer with their mean gap over the data: a loss reads single tokens.
Convention: the mean of both KLs (the paper's code sums them). The gradient goes through both mixtures, as in the
formula; the paper's code stops it in the second.
Source: DistiLLM-2, arXiv 2503.07067.
"""

from dataclasses import dataclass

from torch import Tensor

from neoplug import Softened, hookimpl
from neoplug_losses.skew_forward_kl import SkewForwardKL
from neoplug_losses.skew_reverse_kl import SkewReverseKL


@dataclass(eq=False)
class DistiLLM2(Softened):
    """Mean of skew forward and skew reverse KL; with `gradual_beta` the reverse one's weight grows during the run."""

    alpha: float = 0.1  # share of the first argument in the mixture, in (0, 1)
    gradual_beta: bool = False  # increase the weight of the reverse KL during the run

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha < 1:
            raise ValueError(
                f"alpha is {self.alpha}, but must lie in (0, 1); at 0 it is jeffreys, the mean of both KLs"
            )
        self._forward = SkewForwardKL(self.temperature, self.alpha)
        self._reverse = SkewReverseKL(self.temperature, self.alpha)

    @hookimpl
    def token_loss(self, student: Tensor, teacher: Tensor, progress: float) -> Tensor:
        """Return (1 - s) KL(p, m_p) + s KL(q, m_q), [N], times T^2."""
        share = self._share_of_reverse(progress)
        forward, reverse = (part.token_loss(student, teacher) for part in (self._forward, self._reverse))
        return (1 - share) * forward + share * reverse

    @hookimpl
    def token_gradient(self, student: Tensor, teacher: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """Return the value, [N], and the same mix of both gradients, [N, V]."""
        share = self._share_of_reverse(progress)
        value, gradient = (part.mul_(1 - share) for part in self._forward.token_gradient(student, teacher))
        reverse_value, reverse_gradient = self._reverse.token_gradient(student, teacher)
        return value.add_(reverse_value, alpha=share), gradient.add_(reverse_gradient, alpha=share)

    def _share_of_reverse(self, progress: float) -> float:
        """Return s at this progress of the run."""
        return 0.5 + 0.25 * min(1.0, 2 * progress) if self.gradual_beta else 0.5
