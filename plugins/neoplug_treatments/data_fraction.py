"""A fraction of the training documents: measures how much data a method needs.

A document is trained on where the hash of its content, as a number in [0, 1), is below the fraction. So all arms, seeds
and epochs of a study train on the same documents, and those of a smaller fraction are among those of a larger one. The
number of steps stays as it is; each has fewer documents. To train on fewer rows with the same tokens in each step, use
`data.max_rows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neoplug import hookimpl

if TYPE_CHECKING:
    from neoplug import Document

DIGITS = 13  # hexadecimal, of a hash: 52 bits, which a float holds exactly


@dataclass(eq=False)
class DataFraction:
    """Train only on a fraction of the documents, chosen by their content."""

    fraction: float  # in (0, 1]

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction is {self.fraction}, but must lie in (0, 1]")

    @hookimpl
    def edit_documents(self, documents: Sequence[Document]) -> list[Document]:
        """Return the documents that are chosen."""
        return [one for one in documents if int(one.content_hash[:DIGITS], 16) < self.fraction * 16**DIGITS]
