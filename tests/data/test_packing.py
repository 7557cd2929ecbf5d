"""Packing keeps every document whole, overfills no row and wastes little space."""

import sys
from collections import Counter
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from neoplug.data.packing import pack


def packed(lengths, max_length):
    """Return the numbers of each row's documents."""
    order, bounds = pack(np.array(lengths, np.int64), max_length)
    assert [bounds[0], bounds[-1]] == [0, len(lengths)]
    return [order[first:last].tolist() for first, last in pairwise(bounds)]


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), max_size=200))
def test_every_document_once_in_rows_that_hold_them(lengths):
    rows = packed(lengths, 50)
    assert Counter(number for row in rows for number in row) == Counter(range(len(lengths)))
    assert all(0 < sum(lengths[number] for number in row) <= 50 for row in rows)


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), max_size=60))
def test_each_document_goes_where_it_fits_best(lengths):
    """By definition: longest first, into the fullest row that holds it, the earliest of several."""
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
def test_no_two_rows_could_have_been_one(lengths):
    """Bounded below by room and by halves; and no two rows are so empty that they would have been one."""
    rows = packed(lengths, 50)
    halves = sum(length > 25 for length in lengths)  # no two of these share a row
    optimum_at_least = max(-(-sum(lengths) // 50), halves)
    assert len(rows) >= optimum_at_least
    assert sum(sum(lengths[n] for n in row) <= 25 for row in rows) <= 1


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([512, 1024, 2048]), st.integers(300, 2000), st.integers(0, 2**32 - 1))
def test_at_most_a_twentieth_is_wasted_on_lengths_like_those_of_chats(max_length, documents, seed):
    """As instructions and answers by a tokenizer of 49,152 tokens: their logarithms have mean 5.06, deviation 0.71."""
    drawn = np.random.default_rng(seed).lognormal(5.06, 0.71, documents).astype(int)
    lengths = np.clip(drawn, 8, max_length)
    rows = packed(lengths, max_length)
    assert 1 - lengths.sum() / (max_length * len(rows)) <= 0.05


def test_a_huge_max_length_takes_no_memory():
    assert packed([3, 5, 4], 10**15) == [[0, 1, 2]]
    assert packed([], 10**15) == []


def lines_run(documents):
    """Return how many lines of Python it takes to pack so many documents."""
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


def test_the_work_grows_linearly_with_the_documents():
    """Looking at every row for every document would square it: minutes in place of a quarter second for 100,000."""
    assert lines_run(4_000) < 2.2 * lines_run(2_000)
