"""Packing loses no document, splits none, overfills no row and wastes little."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from neoplug.data import Document
from neoplug.data.packing import pack


def documents(lengths):
    return [Document(np.full(n, k), np.ones(n, bool), k) for k, n in enumerate(lengths)]


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), max_size=200))
def test_every_document_once_in_rows_that_hold_them(lengths):
    given_documents = documents(lengths)
    rows = pack(given_documents, 50)
    assert Counter(id(d) for row in rows for d in row) == Counter(map(id, given_documents))
    assert all(0 < sum(map(len, row)) <= 50 for row in rows)
    assert [[d.row for d in row] for row in rows] == [[d.row for d in row] for row in pack(given_documents, 50)]


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=200))
def test_no_two_rows_could_have_been_one(lengths):
    """Bounded below by room and by halves; and no two rows are so empty that they would have been one."""
    rows = pack(documents(lengths), 50)
    halves = sum(length > 25 for length in lengths)  # no two of these share a row
    optimum_at_least = max(-(-sum(lengths) // 50), halves)
    assert len(rows) >= optimum_at_least
    assert sum(sum(map(len, row)) <= 25 for row in rows) <= 1


def test_little_is_wasted_on_lengths_like_those_of_chats():
    lengths = np.clip(np.random.default_rng(0).lognormal(5.2, 0.8, 2000).astype(int), 8, 1024)
    rows = pack(documents(lengths), 1024)
    assert lengths.sum() / (1024 * len(rows)) > 0.95
