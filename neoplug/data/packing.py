"""Documents to rows: best fit, longest first. A document is never split, and the same documents give the same rows."""

from bisect import bisect_left, insort
from collections.abc import Sequence

from neoplug.data.batch import Document


def pack(documents: Sequence[Document], max_length: int) -> list[list[Document]]:
    """Return rows of at most `max_length` tokens that together hold every document once.

    Each document goes to the row with the least room that still holds it. Documents stand in their given order inside
    a row, and rows in the order of their first documents.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for index in sorted(range(len(documents)), key=lambda index: (-len(documents[index]), index)):
        length = len(documents[index])
        place = bisect_left(room, (length, 0))
        if place < len(room):
            left, row = room.pop(place)
            rows[row].append(index)
        else:
            left, row = max_length, len(rows)
            rows.append([index])
        if left > length:
            insort(room, (left - length, row))
    return [[documents[index] for index in row] for row in sorted(map(sorted, rows))]
