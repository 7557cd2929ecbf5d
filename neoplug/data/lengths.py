"""Rows of any length to documents of at most `max_length` tokens; what that loses is said."""

from dataclasses import dataclass

import numpy as np

from neoplug.data.batch import Document
from neoplug.data.tokenise import Tokenised


@dataclass(frozen=True)
class Fitted:
    """What a row became: no document where no answer token is left."""

    documents: list[Document]
    lost_answer_tokens: int
    cut: bool


def fit(row: Tokenised, max_length: int) -> Fitted:
    """Cut a row to documents of at most `max_length` tokens: at its end, or where it may be, into windows."""
    if row.windowed:
        return Fitted([d for d in windows(row, max_length) if d.answer_tokens], 0, False)
    document = Document(row.input_ids[:max_length], row.scored[:max_length], row.row)
    lost = int(row.scored[max_length:].sum())
    return Fitted([document] if document.answer_tokens else [], lost, len(row.input_ids) > max_length)


def windows(row: Tokenised, max_length: int) -> list[Document]:
    """Cut a text into consecutive windows that share one token: the last of one is the first, unscored, of the next.

    So every token but the text's first is scored exactly once.
    """
    found = []
    for start in range(0, max(1, len(row.input_ids) - 1), max_length - 1):
        scored = row.scored[start : start + max_length].copy()
        scored[:1] = False
        found.append(Document(row.input_ids[start : start + max_length], scored, row.row))
    return found


def idle(document: Document) -> Document:
    """Return the document with nothing scored: what a rank runs that has no rows left."""
    return Document(document.input_ids, np.zeros_like(document.scored), document.row)
