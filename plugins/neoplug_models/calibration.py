"""Calibration text: single documents, so that neither padding nor other documents influence what is measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from neoplug import Batch


def documents(batches: Iterable[Batch], tokens: int) -> Iterator[Tensor]:
    """Yield the batches' documents, each [1, L], until `tokens` tokens are read; the last is cut to fit."""
    left = tokens
    for batch in batches:
        for document in batch.input_ids.split(batch.lengths):
            yield document[None, :left]
            left -= len(document)
            if left <= 0:
                return
