"""The halves of the held-out documents: validation chooses the rates, test is reported once."""

from typing import Literal

Half = Literal["validation", "test"]


def half_of(content_hash: str) -> Half:
    """Return the half of a document, by its content alone: the same in every run and study.

    content_hash  the column `content_hash` of evaluation/NAME.parquet
    """
    raise NotImplementedError
