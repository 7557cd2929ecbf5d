"""Weight tokens by their position in the answer, n = 0 for the first.

    2^(-n / half_life) (more on early) or 1 - 2^(-(n + 1) / half_life) (more on late, never 0)

The first tokens of an answer set its direction; later ones are conditioned on tokens that come from the data in
training but from the student at generation time. Both directions are offered for experiments; neither follows a paper.
"""

from dataclasses import dataclass
from math import log
from typing import Literal

import torch
from torch import Tensor

from neoplug import hookimpl


@dataclass(eq=False)
class Position:
    """Weight answer tokens by position: a weight that decays from 1, or rises to 1, exponentially."""

    more_on: Literal["early", "late"] = "early"
    half_life: float = 64.0  # answer tokens in which the weight (early), or its distance to 1 (late), halves

    def __post_init__(self) -> None:
        if not self.half_life > 0:
            raise ValueError(f"half_life is {self.half_life}, but must be above 0")

    @hookimpl
    def token_weight(self, position: Tensor) -> Tensor:
        """Return the weights: [N] -> [N] float32 in [0, 1]."""
        rate = -log(2) / self.half_life
        if self.more_on == "early":
            return torch.exp(position.float() * rate)
        return -torch.expm1((position.float() + 1) * rate)
