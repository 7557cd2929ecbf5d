"""Weight tokens by the entropy of the teacher p, its uncertainty about the next token.

    h = H(p) / ln V in [0, 1];   weight h^gamma (more on uncertain) or (1 - h)^gamma (more on certain)

At uncertain positions the teacher carries more information than the label; at certain ones it is least likely to err.
A large vocabulary keeps h small (an entropy of 2 nats at V = 49,152 is h = 0.19): with `uncertain` the losses shrink by
the same factor, so tune the learning rate of each arm.
Source: EA-KD, arXiv 2311.13621, which weighs by the entropies of teacher and student, with more on the uncertain;
the teacher's entropy alone, its normalisation by ln V, and the other direction are neoplug's additions.
"""

from dataclasses import dataclass
from math import log
from typing import Literal

from torch import Tensor

from neoplug import hookimpl


@dataclass(eq=False)
class TeacherEntropy:
    """Weight answer tokens by a power of the teacher's normalised entropy h, or of 1 - h."""

    more_on: Literal["uncertain", "certain"] = "uncertain"
    gamma: float = 1.0  # above 0; larger is sharper

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise ValueError(f"gamma is {self.gamma}, but must be above 0")

    @hookimpl
    def token_weight(self, student: Tensor, teacher_entropy: Tensor) -> Tensor:
        """Return the weights [N] in [0, 1]."""
        share = (teacher_entropy / log(student.shape[-1])).clamp(0, 1)
        return (share if self.more_on == "uncertain" else 1 - share) ** self.gamma
