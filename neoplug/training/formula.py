"""The closed formula of a loss as numbers, which one kernel can compute for several losses at once (`fused_tile`).

p is the teacher's and q the student's probability of each of V tokens, y the answer token. N answer tokens.
"""

from dataclasses import dataclass
from math import inf

from torch import Tensor

from neoplug.training.divergence import log_mixture


@dataclass(frozen=True)
class Formula:
    """A loss as the sum of five terms, with p and q softened by the temperature:

        T^2 (teacher KL(p, m) + student KL(q, m))  - label log q(y) - uniform mean over V of log q

    with the mixture m = share p + (1 - share) q. A loss that has this form for its options says so in an attribute or a
    property `formula`, and None where it has not. A run on a GPU then computes it in a kernel with the other losses of
    the recipe, if these have formulas too and the kernel agrees with their hooks there. The hooks are still needed:
    they are the loss.

    teacher, student  factors of the divergence of the teacher, and of the student, from the mixture
    share             the teacher's in the mixture, from 0 to 1: at 0 it is q, at 1 it is p
    label             factor of the cross-entropy with the answer token, at temperature 1
    uniform           factor of the cross-entropy with the uniform distribution, at temperature 1
    temperature       above 0, of both distributions in the divergences
    """

    teacher: float = 0.0
    student: float = 0.0
    share: float = 0.0
    label: float = 0.0
    uniform: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is {self.share}, but must lie in [0, 1]")
        if not 0 < self.temperature < inf:
            raise ValueError(f"temperature is {self.temperature}, but must be a finite number above 0")

    @property
    def compares(self) -> bool:
        """Whether the teacher is needed."""
        return bool(self.teacher or self.student)

    def value(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """Return the loss of each token, [N] nats.

        student  [N, V] log-probabilities at temperature 1
        teacher  likewise; None only where no divergence is in the formula
        labels   [N] int64
        """
        value = -self.label * student.gather(-1, labels[:, None])[:, 0]
        if self.uniform:
            value = value - self.uniform * student.mean(-1)
        if not self.compares:
            return value
        assert teacher is not None
        log_p, log_q = ((logits / self.temperature).log_softmax(-1) for logits in (teacher, student))
        one_of_them = log_p if self.share else log_q
        log_m = log_mixture(log_p, log_q, self.share) if 0 < self.share < 1 else one_of_them
        of_teacher, of_student = log_p.exp() * (log_p - log_m), log_q.exp() * (log_q - log_m)
        divergence: Tensor = (self.teacher * of_teacher + self.student * of_student).sum(-1)
        return value + self.temperature**2 * divergence


def formula_of(loss: object) -> Formula | None:
    """Return the formula that a loss declares; None without one."""
    declared = getattr(loss, "formula", None)
    return declared if isinstance(declared, Formula) else None
