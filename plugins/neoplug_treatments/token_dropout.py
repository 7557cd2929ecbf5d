"""Token dropout: measures how much a method depends on every token of the prompt.

Each token without a loss, but for the first of its document, is left out of the student's text with a given
probability, independently; the tokens after it move up. The teacher reads the whole text. Answer tokens stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from neoplug import hookimpl

if TYPE_CHECKING:
    from neoplug import Document


@dataclass(eq=False)
class TokenDropout:
    """Leave tokens of the prompt out of the student's text at random; the teacher reads all of them."""

    probability: float  # of each token without a loss, in [0, 1]

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability is {self.probability}, but must lie in [0, 1]")

    @hookimpl
    def edit_documents(self, documents: Sequence[Document], rng: torch.Generator) -> list[Document]:
        """Return the documents with a thinned text for the student."""
        return [self._thinned(document, rng) for document in documents]

    def _thinned(self, document: Document, rng: torch.Generator) -> Document:
        left = (torch.rand(len(document), generator=rng) >= self.probability).numpy() | document.loss_mask
        left[0] = True
        if left.all():
            return document
        teacher = document.as_teacher()
        return replace(
            document,
            input_ids=document.input_ids[left],
            loss_mask=document.loss_mask[left],
            teacher_ids=teacher.input_ids,
            teacher_loss_mask=teacher.loss_mask,
        )
