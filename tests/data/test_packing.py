"""Packing divides no document, makes no row longer than `max_length` and leaves little space free."""

import sys
from collections import Counter
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from neoplug.data.packing import pack


def packed(lengths, max_length):
    """Return the indices of the documents of each row."""
    order, bounds = pack(np.array(lengths, np.int64), max_length)
    assert [bounds[0], bounds[-1]] == [0, len(lengths)]
    return [order[first:last].tolist() for first, last in pairwise(bounds)]


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), max_size=200))
def test_every_document_is_in_one_row_and_no_row_is_too_long(lengths):
    rows = packed(lengths, 50)
    assert Counter(number for row in rows for number in row) == Counter(range(len(lengths)))
    assert all(0 < sum(lengths[number] for number in row) <= 50 for row in rows)


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), max_size=60))
def test_the_packing_is_best_fit_decreasing(lengths):
    """The reference: longest first, each into the fullest row with enough space, the earliest of equal ones."""
    rows = []
    for number in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        filled = [sum(lengths[n] for n in row) for row in rows]
        places = [at for at, tokens in enumerate(filled) if tokens + lengths[number] <= 50]
        row = max(places, key=lambda at: (filled[at], -at), default=None)
        if row is None:
            rows.append([number])
        else:
            rows[row].append(number)
    assert packed(lengths, 50) == sorted(map(sorted, rows))


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=200))
def test_the_number_of_rows_is_within_bounds_and_no_two_rows_fit_into_one(lengths):
    """The lower bounds are the tokens divided by the space, and the number of documents longer than half a row."""
    rows = packed(lengths, 50)
    over_half = sum(length > 25 for length in lengths)  # no two of these fit into one row
    lower_bound = max(-(-sum(lengths) // 50), over_half)
    assert len(rows) >= lower_bound
    assert sum(sum(lengths[n] for n in row) <= 25 for row in rows) <= 1


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([512, 1024, 2048]), st.integers(300, 2000), st.integers(0, 2**32 - 1))
def test_at_most_5_percent_of_the_space_is_free_for_lengths_distributed_as_in_chats(max_length, documents, seed):
    """In chats, with a vocabulary of 49,152 tokens, the log lengths have mean 5.06 and deviation 0.71."""
    drawn = np.random.default_rng(seed).lognormal(5.06, 0.71, documents).astype(int)
    lengths = np.clip(drawn, 8, max_length)
    rows = packed(lengths, max_length)
    assert 1 - lengths.sum() / (max_length * len(rows)) <= 0.05


def test_memory_does_not_grow_with_max_length():
    assert packed([3, 5, 4], 10**15) == [[0, 1, 2]]
    assert packed([], 10**15) == []


def lines_run(documents):
    """Return the number of lines of Python that run while so many documents are packed."""
    lengths = np.clip(np.random.default_rng(0).lognormal(5.06, 0.71, documents).astype(int), 8, 1024)
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        pack(lengths, 1024)
    finally:
        sys.settrace(before)
    return count


def test_the_time_grows_linearly_with_the_number_of_documents():
    """A search through all rows for each document would make it quadratic: minutes instead of 0.25 s for 100,000."""
    assert lines_run(4_000) < 2.2 * lines_run(2_000)
