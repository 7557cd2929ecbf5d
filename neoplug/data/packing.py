"""Packing of documents into rows: best fit decreasing. No document is split; the same documents give the same rows."""

from heapq import heappop, heappush

import numpy as np


def pack(lengths: np.ndarray, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of at most `max_length` tokens that together contain every document once.

    lengths  [D] int64: tokens of each document
    returns  [D] int64: indices of documents, row by row; [R + 1] int64: where each row starts in these, and D

    The documents are placed longest first, each into the row with the least free space that is enough for it; of equal
    rows, into the earliest. In the result, the documents of a row are in their given order, and the rows are in the
    order of their first documents.
    """
    max_length = min(max_length, int(lengths.sum()))  # no row is longer; this bounds the memory of `open_rows`
    row_of = np.zeros(len(lengths), np.int64)
    rows = 0
    open_rows: list[list[int]] = [[] for _ in range(max_length + 1)]  # number of free tokens -> heap of rows
    spaces = 0  # bit n is set if some row has exactly n free tokens
    for document in map(int, np.argsort(-lengths, kind="stable")):
        length = int(lengths[document])
        if fitting := spaces >> length:
            space = length + (fitting & -fitting).bit_length() - 1
            row = heappop(open_rows[space])
            if not open_rows[space]:
                spaces &= ~(1 << space)
        else:
            space, row, rows = max_length, rows, rows + 1
        row_of[document] = row
        if left := space - length:
            heappush(open_rows[left], row)
            spaces |= 1 << left
    return _in_order(row_of, rows)


def _in_order(row_of: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what `pack` returns: documents row by row, rows in the order of their first documents.

    row_of  [D] int64: the row of each document
    """
    _, first = np.unique(row_of, return_index=True)
    rank = np.empty(rows, np.int64)
    rank[np.argsort(first)] = np.arange(rows)
    sorted_row_of = rank[row_of]
    bounds = np.concatenate([[0], np.cumsum(np.bincount(sorted_row_of, minlength=rows))])
    return np.argsort(sorted_row_of, kind="stable"), bounds
