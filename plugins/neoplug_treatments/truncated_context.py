"""Truncated context: the student answers without the text that the teacher has read, and learns to do as if it had.

Of what precedes a document's first answer token, the student reads only the last tokens; the teacher reads all of it.
This is context distillation (Askell et al. 2021, 2112.00861; Snell et al. 2022, 2209.15189): with
`teacher: {self: base}` what the model knows from its context is trained into its weights. A document whose answer
begins earlier stays as it is, and so does one whose every token is an answer token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from neoplug import hookimpl

if TYPE_CHECKING:
    from neoplug import Document


@dataclass(eq=False)
class TruncatedContext:
    """Cut the text before the first answer for the student; the teacher reads all of it."""

    tokens: int  # that the student reads before the first answer token, at least 1: one has to predict it

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"tokens is {self.tokens}, but must be at least 1")

    @hookimpl
    def edit_documents(self, documents: Sequence[Document]) -> list[Document]:
        """Return the documents with a shorter text for the student."""
        return [self._cut(document) for document in documents]

    def _cut(self, document: Document) -> Document:
        answers = np.flatnonzero(document.loss_mask[1:]) + 1
        start = answers[0] - self.tokens if len(answers) else 0
        if start <= 0:
            return document
        teacher = document.as_teacher()
        return replace(
            document,
            input_ids=document.input_ids[start:],
            loss_mask=document.loss_mask[start:],
            teacher_ids=teacher.input_ids,
            teacher_loss_mask=teacher.loss_mask,
        )
