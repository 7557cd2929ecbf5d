"""Rows of any length to documents of at most `max_length` tokens; what that loses is said."""

from dataclasses import dataclass, replace

import numpy as np

from neoplug.data.batch import Document
from neoplug.data.encode.tokenise import Tokenised


@dataclass(frozen=True)
class Fitted:
    """What a row became: no document where no answer token is left."""

    documents: list[Document]
    lost_answer_tokens: int
    cut: bool


def fit(row: Tokenised, max_length: int) -> Fitted:
    """Cut a row to documents of at most `max_length` tokens: at its end, or where it may be, into windows.

    A row that the teacher reads behind a prompt of its own is cut where both texts are: each keeps the answer tokens
    that stand within `max_length` tokens of either.
    """
    if row.windowed:
        return Fitted([d for d in windows(row, max_length) if d.answer_tokens], 0, False)
    whole = Document(row.input_ids, row.loss_mask, row.row, row.teacher_ids, row.teacher_loss_mask)
    readings = [whole] if row.teacher_ids is None else [whole, whole.as_teacher()]
    kept = min(int(reading.loss_mask[:max_length].sum()) for reading in readings)
    cut = [_beginning(reading, max_length, kept) for reading in readings]
    document = Document(*cut[0], row.row, *(cut[1] if len(cut) > 1 else ()))
    lost = int(row.loss_mask.sum()) - kept
    return Fitted([document] if document.answer_tokens else [], lost, whole.longest > max_length)


def _beginning(document: Document, max_length: int, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens and mask up to `max_length`, or up to the first answer token after those `kept`."""
    within = np.flatnonzero(document.loss_mask[:max_length])
    end = within[kept] if len(within) > kept else max_length
    return document.input_ids[:end], document.loss_mask[:end]


def windows(row: Tokenised, max_length: int) -> list[Document]:
    """Cut a text into consecutive windows that share one token: the last of one is the first, unscored, of the next.

    So every token but the text's first is scored exactly once.
    """
    found = []
    for start in range(0, max(1, len(row.input_ids) - 1), max_length - 1):
        scored = row.loss_mask[start : start + max_length].copy()
        scored[:1] = False
        found.append(Document(row.input_ids[start : start + max_length], scored, row.row))
    return found


def without_answers(document: Document) -> Document:
    """Return the document with nothing scored: what a rank runs that has no rows left.

    The teacher still reads its own text, since it may not know the student's tokens.
    """
    theirs = None if document.teacher_loss_mask is None else np.zeros_like(document.teacher_loss_mask)
    return replace(document, loss_mask=np.zeros_like(document.loss_mask), teacher_loss_mask=theirs, number=-1)
