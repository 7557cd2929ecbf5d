"""Documents to rows: best fit, longest first. A document is never split, and the same documents give the same rows."""

from heapq import heappop, heappush

import numpy as np


def pack(lengths: np.ndarray, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of at most `max_length` tokens that together hold every document once.

    lengths  [D] tokens of each document
    returns  [D] numbers of documents, row by row; [R + 1] where in them each row begins, and where the last one ends

    Each document goes to the row with the least room that still holds it, the earliest of several. Documents stand in
    their given order inside a row, and rows in the order of their first documents.
    """
    max_length = min(max_length, int(lengths.sum()))  # no row gets fuller: a `max_length` of 10**8 costs nothing
    row_of = np.zeros(len(lengths), np.int64)
    rows = 0
    waiting: list[list[int]] = [[] for _ in range(max_length + 1)]  # by the room that is left: a heap of rows
    rooms = 0  # bit n is set where a row has room for n tokens
    for document in map(int, np.argsort(-lengths, kind="stable")):
        length = int(lengths[document])
        if fitting := rooms >> length:
            room = length + (fitting & -fitting).bit_length() - 1
            row = heappop(waiting[room])
            if not waiting[room]:
                rooms &= ~(1 << room)
        else:
            room, row, rows = max_length, rows, rows + 1
        row_of[document] = row
        if left := room - length:
            heappush(waiting[left], row)
            rooms |= 1 << left
    return _in_order(row_of, rows)


def _in_order(row_of: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return documents and bounds with rows in the order of their first documents."""
    _, first = np.unique(row_of, return_index=True)
    place = np.empty(rows, np.int64)
    place[np.argsort(first)] = np.arange(rows)
    place_of = place[row_of]
    return np.argsort(place_of, kind="stable"), np.concatenate([[0], np.cumsum(np.bincount(place_of, minlength=rows))])
