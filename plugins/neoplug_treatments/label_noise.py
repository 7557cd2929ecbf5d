"""Symmetric label noise: measures how much a method depends on clean labels.

Each label is replaced, with a given probability, independently, by another token drawn uniformly from the distinct
answer tokens of the same training row, so every drawn token occurs in the data. A row with only one distinct answer
token stays unchanged. The text that the models read is not changed, only the labels: cross-entropy is affected,
a divergence from the teacher is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from neoplug import hookimpl

if TYPE_CHECKING:
    from neoplug import Batch


@dataclass(eq=False)
class LabelNoise:
    """Replace training labels at random by other answer tokens of the training row."""

    probability: float  # of each label, in [0, 1]

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability is {self.probability}, but must lie in [0, 1]")

    @hookimpl
    def edit_batch(self, batch: Batch, rng: torch.Generator) -> None:
        """Replace labels of the row's batch in place."""
        tokens, index = batch.labels.unique(return_inverse=True)
        if len(tokens) < 2:
            return
        hit = torch.rand(len(index), generator=rng) < self.probability
        step = torch.randint(1, len(tokens), index.shape, generator=rng)  # never 0, so never the label itself
        batch.labels = tokens[torch.where(hit, (index + step) % len(tokens), index)]
