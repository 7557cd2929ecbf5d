"""Cutting of tokenised rows to documents of at most `max_length` tokens, with a count of the answer tokens lost."""

from dataclasses import dataclass, replace

import numpy as np

from neoplug.data.batch import Document
from neoplug.data.encode.row_encoder import EncodedRow


@dataclass(frozen=True, eq=False)
class Fitted:
    """The D documents of one row: one, or several windows; none where no answer token is left.

    row                 index of the row in its source
    input_ids           [T] int64: for each document the student's tokens, followed by the teacher's if it has its own
    loss_mask           [T] bool: the answer tokens, as those of a document
    lengths             [D] int64: the student's tokens of each document
    teacher_lengths     [D] int64: the teacher's own tokens of each document; 0 where it reads the student's
    answer_tokens       [D] int64: the number of answer tokens of each document
    lost_answer_tokens  number of answer tokens that were cut off
    cut                 whether the row was truncated; False for a row that was split into windows
    """

    row: int
    input_ids: np.ndarray
    loss_mask: np.ndarray
    lengths: np.ndarray
    teacher_lengths: np.ndarray
    answer_tokens: np.ndarray
    lost_answer_tokens: int = 0
    cut: bool = False


def fit(row: EncodedRow, max_length: int) -> Fitted:
    """Truncate a row to one document of at most `max_length` tokens, or split it into several if it is `windowed`.

    Where the teacher has its own text, both texts keep the same answer tokens: those that are among the first
    `max_length` tokens in both.
    """
    return _windows(row, max_length) if row.windowed else _truncated(row, max_length)


def _truncated(row: EncodedRow, max_length: int) -> Fitted:
    ids, masks = [row.input_ids], [row.loss_mask]
    if row.teacher_ids is not None and row.teacher_loss_mask is not None:
        ids, masks = [*ids, row.teacher_ids], [*masks, row.teacher_loss_mask]
    kept = min(int(np.count_nonzero(mask[:max_length])) for mask in masks)
    ends = [_end(mask, max_length, kept) for mask in masks]
    answers = int(np.count_nonzero(row.loss_mask[1 : ends[0]]))
    if not answers:
        ends = [0] * len(ends)
    counts = np.array([[ends[0], sum(ends[1:]), answers]], np.int64)[: bool(answers)]  # [D, 3], D is 0 or 1
    return Fitted(
        row.row,
        np.concatenate([text[:end] for text, end in zip(ids, ends, strict=True)]),
        np.concatenate([mask[:end] for mask, end in zip(masks, ends, strict=True)]),
        lengths=counts[:, 0],
        teacher_lengths=counts[:, 1],
        answer_tokens=counts[:, 2],
        lost_answer_tokens=int(np.count_nonzero(row.loss_mask)) - kept,
        cut=max(map(len, ids)) > max_length,
    )


def _end(loss_mask: np.ndarray, max_length: int, kept: int) -> int:
    """Return the length of the longest beginning with at most `max_length` tokens and `kept` answer tokens."""
    within = np.flatnonzero(loss_mask[:max_length])
    return int(within[kept]) if len(within) > kept else min(max_length, len(loss_mask))


def _windows(row: EncodedRow, max_length: int) -> Fitted:
    """Split a row into consecutive windows of at most `max_length` tokens that overlap by one token.

    The loss mask is False at the first token of a window, since nothing predicts it there. With the overlap, every
    answer token of the row is in the loss of exactly one window. A window without answer tokens is left out.
    """
    length = len(row.input_ids)
    starts = np.arange(0, max(1, length - 1), max_length - 1)
    ends = np.minimum(starts + max_length, length)
    answers_before = np.concatenate([[0], np.cumsum(row.loss_mask)])
    answers = answers_before[ends] - answers_before[np.minimum(starts + 1, length)]
    kept = answers > 0
    starts, lengths, answers = starts[kept], (ends - starts)[kept], answers[kept]
    places = ranges(starts, lengths)
    loss_mask = row.loss_mask[places]
    loss_mask[np.cumsum(lengths) - lengths] = False
    return Fitted(row.row, row.input_ids[places], loss_mask, lengths, np.zeros_like(lengths), answers)


def ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the indices from each start on, `sizes` many, one range after the other: [sum of sizes] int64."""
    ends = np.cumsum(sizes)
    return np.repeat(starts - ends + sizes, sizes) + np.arange(ends[-1] if len(ends) else 0)


def without_answers(document: Document) -> Document:
    """Return the document without answer tokens: the input of a rank that has no rows left in a step.

    The teacher's own text is kept, since the student's tokens may not be in the teacher's vocabulary.
    """
    teacher_mask = None if document.teacher_loss_mask is None else np.zeros_like(document.teacher_loss_mask)
    return replace(document, loss_mask=np.zeros_like(document.loss_mask), teacher_loss_mask=teacher_mask, number=-1)
