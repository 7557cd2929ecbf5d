"""Weight tokens by the entropy of the teacher p: by how much it leaves open what comes next.

    h = H(p) / ln V in [0, 1];   weight h^gamma (more on uncertain) or (1 - h)^gamma (more on certain)

Uncertain positions are where the teacher says more than the label does; at certain ones it is least likely to be wrong.
A large vocabulary keeps h small (2 nats of V = 49,152 are 0.19): under `uncertain` the losses shrink by as much, so
compare arms at learning rates of their own.
Source: EA-KD, arXiv 2311.13621, which weighs by the entropies of teacher and student, with more on the uncertain;
the teacher's alone, normalised by ln V, and the other direction are ours.
"""

from dataclasses import dataclass
from math import log
from typing import Literal

import torch
from torch import Tensor

from neoplug import hookimpl


@dataclass(eq=False)
class TeacherEntropy:
    """A power of the teacher's entropy, or of what it lacks to the largest."""

    more_on: Literal["uncertain", "certain"] = "uncertain"
    gamma: float = 1.0  # above 0; larger is sharper

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise ValueError(f"gamma is {self.gamma}, but must be above 0")

    @hookimpl
    def token_weight(self, teacher: Tensor) -> Tensor:
        """Return the weights: [N, V] log-probabilities -> [N] in [0, 1]."""
        entropy = torch.special.entr(teacher.exp()).sum(-1)
        share = (entropy / log(teacher.shape[-1])).clamp(0, 1)
        return (share if self.more_on == "uncertain" else 1 - share) ** self.gamma
