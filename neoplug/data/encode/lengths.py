"""Cutting of tokenised rows to documents of at most `max_length` tokens, with a count of the answer tokens lost."""

from dataclasses import dataclass, replace

import numpy as np

from neoplug.data.batch import Document
from neoplug.data.encode.row_encoder import EncodedRow


@dataclass(frozen=True)
class Fitted:
    """The documents of one row.

    documents           one, or several windows; none where no answer token is left
    lost_answer_tokens  number of answer tokens that were cut off
    cut                 whether the row was truncated; False for a row that was split into windows
    """

    documents: list[Document]
    lost_answer_tokens: int
    cut: bool


def fit(row: EncodedRow, max_length: int) -> Fitted:
    """Truncate a row to one document of at most `max_length` tokens, or split it into several if it is `windowed`.

    Where the teacher has its own text, both texts keep the same answer tokens: those that are among the first
    `max_length` tokens in both.
    """
    if row.windowed:
        return Fitted([window for window in split_into_windows(row, max_length) if window.answer_tokens], 0, False)
    whole = Document(row.input_ids, row.loss_mask, row.row, row.teacher_ids, row.teacher_loss_mask)
    texts = [whole] if row.teacher_ids is None else [whole, whole.as_teacher()]
    kept = min(int(text.loss_mask[:max_length].sum()) for text in texts)
    truncated = [_truncated(text, max_length, kept) for text in texts]
    document = Document(*truncated[0], row.row, *(truncated[1] if len(truncated) > 1 else ()))
    lost = int(row.loss_mask.sum()) - kept
    return Fitted([document] if document.answer_tokens else [], lost, whole.max_text_length > max_length)


def _truncated(document: Document, max_length: int, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the longest beginning with at most `max_length` tokens and `kept` answer tokens, and its mask."""
    within = np.flatnonzero(document.loss_mask[:max_length])
    end = within[kept] if len(within) > kept else max_length
    return document.input_ids[:end], document.loss_mask[:end]


def split_into_windows(row: EncodedRow, max_length: int) -> list[Document]:
    """Split a row into consecutive windows of at most `max_length` tokens that overlap by one token.

    The loss mask is False at the first token of a window, since nothing predicts it there. With the overlap, every
    answer token of the row is in the loss of exactly one window.
    """
    documents = []
    for start in range(0, max(1, len(row.input_ids) - 1), max_length - 1):
        loss_mask = row.loss_mask[start : start + max_length].copy()
        loss_mask[:1] = False
        documents.append(Document(row.input_ids[start : start + max_length], loss_mask, row.row))
    return documents


def without_answers(document: Document) -> Document:
    """Return the document without answer tokens: the input of a rank that has no rows left in a step.

    The teacher's own text is kept, since the student's tokens may not be in the teacher's vocabulary.
    """
    teacher_mask = None if document.teacher_loss_mask is None else np.zeros_like(document.teacher_loss_mask)
    return replace(document, loss_mask=np.zeros_like(document.loss_mask), teacher_loss_mask=teacher_mask, number=-1)
