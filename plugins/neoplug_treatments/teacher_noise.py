"""Noise in what the teacher reads: measures how much a method depends on a teacher that understands the text.

Each token of the teacher's text, but for the first of a document, is replaced, with a given probability, independently,
by another token drawn uniformly from the distinct tokens of the same training row. Answer tokens are replaced as inputs
too, so the teacher predicts each answer token after a faulty beginning. The student's text and all labels stay. A row
with only one distinct token stays unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from neoplug import Problem, hookimpl

if TYPE_CHECKING:
    from neoplug import Document, Recipe


@dataclass(eq=False)
class TeacherNoise:
    """Replace tokens that the teacher reads at random by other tokens of the training row."""

    probability: float  # of each token, in [0, 1]

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability is {self.probability}, but must lie in [0, 1]")

    @hookimpl
    def check(self, recipe: Recipe) -> list[Problem]:
        """Refuse a recipe without a teacher, and one whose teacher is cached, for the text without noise."""
        if recipe.teacher is None:
            return [Problem("`teacher_noise` changes nothing: the recipe has no teacher", fix="leave it out")]
        if not recipe.teacher.cache:
            return []
        what, why = "`teacher_noise` cannot be combined with a cache", "it is built from the text without noise"
        return [Problem(what, why, "leave one of the two out", ("teacher", "cache"))]

    @hookimpl
    def edit_documents(self, documents: Sequence[Document], rng: torch.Generator) -> list[Document]:
        """Return the documents with noise in the teacher's text."""
        texts = [document.as_teacher() for document in documents]
        tokens = np.unique(np.concatenate([text.input_ids for text in texts]))
        if len(tokens) < 2:
            return list(documents)
        return [
            replace(
                document,
                teacher_ids=self._noisy(text.input_ids, tokens, rng),
                teacher_loss_mask=text.loss_mask,
            )
            for document, text in zip(documents, texts, strict=True)
        ]

    def _noisy(self, ids: np.ndarray, tokens: np.ndarray, rng: torch.Generator) -> np.ndarray:
        """Return ids [L] with replacements from `tokens`, which are sorted and have all of them."""
        hit = (torch.rand(len(ids), generator=rng) < self.probability).numpy()
        step = torch.randint(1, len(tokens), (len(ids),), generator=rng).numpy()  # never 0: never the token itself
        hit[0] = False
        return tokens[(np.searchsorted(tokens, ids) + np.where(hit, step, 0)) % len(tokens)]
