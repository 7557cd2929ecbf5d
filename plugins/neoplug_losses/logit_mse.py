"""Mean squared difference of the logits of teacher and student.

    mean (d - mean d)^2 over the vocabulary, d = z_q - z_p;  0 at p = q, in squared nats per token

Convention: centred, since logits, and log-probabilities as well, are defined up to a shift per token: a shift in either
model's logits changes nothing. Every entry of the vocabulary counts alike, also those with almost no mass under both
models, and the gradient 2 (d - mean d) / V shrinks as V grows: tune the weight for the vocabulary.
Source: Kim et al. 2021, arXiv 2105.08919 (there not centred).
"""

from dataclasses import dataclass

from torch import Tensor

from neoplug import hookimpl


@dataclass(eq=False)
class LogitMSE:
    """Variance, over the vocabulary, of the difference of student and teacher logits."""

    @hookimpl
    def token_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return mean (d - mean d)^2, [N]."""
        difference = student - teacher
        return (difference - difference.mean(-1, keepdim=True)).square().mean(-1)

    @hookimpl
    def token_gradient(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean (d - mean d)^2, [N], and 2 (d - mean d) / V, [N, V]."""
        difference = student - teacher
        difference.sub_(difference.mean(-1, keepdim=True))
        return difference.square().mean(-1), difference.mul_(2 / difference.shape[-1])
