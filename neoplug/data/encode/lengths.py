"""Cutting of tokenised rows to documents of at most `max_length` tokens, with a count of the answer tokens lost."""

from dataclasses import dataclass, replace

import numpy as np

from neoplug.data.batch import Document
from neoplug.data.encode.row_encoder import EncodedRow


@dataclass(frozen=True)
class Fitted:
    """The documents of one row.

    documents           empty where no answer token is left
    lost_answer_tokens  answer tokens that were cut off
    cut                 whether the row was longer than `max_length`; False for a row in windows
    """

    documents: list[Document]
    lost_answer_tokens: int
    cut: bool


def fit(row: EncodedRow, max_length: int) -> Fitted:
    """Cut a row to documents of at most `max_length` tokens: truncate it, or split it if it is `windowed`.

    Where the teacher has its own text, both texts are truncated after the same answer token: the last one that is
    within `max_length` tokens in both.
    """
    if row.windowed:
        return Fitted([d for d in windows(row, max_length) if d.answer_tokens], 0, False)
    whole = Document(row.input_ids, row.loss_mask, row.row, row.teacher_ids, row.teacher_loss_mask)
    texts = [whole] if row.teacher_ids is None else [whole, whole.as_teacher()]
    kept = min(int(text.loss_mask[:max_length].sum()) for text in texts)
    cut = [_truncated(text, max_length, kept) for text in texts]
    document = Document(*cut[0], row.row, *(cut[1] if len(cut) > 1 else ()))
    lost = int(row.loss_mask.sum()) - kept
    return Fitted([document] if document.answer_tokens else [], lost, whole.max_text_length > max_length)


def _truncated(document: Document, max_length: int, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens and mask up to `max_length`, or up to the first answer token after the first `kept`."""
    within = np.flatnonzero(document.loss_mask[:max_length])
    end = within[kept] if len(within) > kept else max_length
    return document.input_ids[:end], document.loss_mask[:end]


def windows(row: EncodedRow, max_length: int) -> list[Document]:
    """Split a text into consecutive windows that share one token: a window's last is the next one's masked first.

    Every token but the text's first is therefore in the loss of exactly one window.
    """
    documents = []
    for start in range(0, max(1, len(row.input_ids) - 1), max_length - 1):
        loss_mask = row.loss_mask[start : start + max_length].copy()
        loss_mask[:1] = False
        documents.append(Document(row.input_ids[start : start + max_length], loss_mask, row.row))
    return documents


def without_answers(document: Document) -> Document:
    """Return the document with an empty loss mask: the input of a rank without rows left in a step.

    The teacher's text stays, since the student's tokens may not be in the teacher's vocabulary.
    """
    teacher_mask = None if document.teacher_loss_mask is None else np.zeros_like(document.teacher_loss_mask)
    return replace(document, loss_mask=np.zeros_like(document.loss_mask), teacher_loss_mask=teacher_mask, number=-1)
