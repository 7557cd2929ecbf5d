"""Which rows are held out depends only on their content."""

import random
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neoplug.data.ingest.columns import recognise
from neoplug.data.split import DIGEST, split
from neoplug.errors import RecipeError

TEXT = recognise(["text"], {})


def digests(texts):
    return list(map(digest_of, texts))


@cache
def digest_of(text):
    return TEXT.content({"text": text}, 0).digest


def is_held(texts, held_out):
    """Return which of the texts are held out."""
    return split(np.array([bytes.fromhex(digest)[:DIGEST] for digest in digests(texts)]), held_out)


def held(texts, held_out):
    return sorted(np.array(texts)[is_held(texts, held_out)].tolist())


DISTINCT = [f"text {number}" for number in range(500)]


@pytest.mark.slow
@settings(deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([1, 7, 0.1, 0.5, None]))
def test_the_order_of_rows_does_not_matter(random_, held_out):
    shuffled = DISTINCT[:]
    random_.shuffle(shuffled)
    assert held(shuffled, held_out) == held(DISTINCT, held_out)


@settings(deadline=None)
@given(st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=40))
def test_with_a_share_adding_rows_moves_no_row_to_the_other_side(more):
    before, after = is_held(DISTINCT, 0.2), is_held(DISTINCT + more, 0.2)
    assert (before == after[: len(before)]).all()
    by_definition = [int(digest, 16) < 0.2 * 2**256 for digest in digests(DISTINCT)]
    assert before.tolist() == by_definition


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=60), st.sampled_from([1, 3, 0.3, None]))
def test_both_sides_have_rows_and_no_row_is_on_both(texts, held_out):
    try:
        kept = is_held(texts, held_out)
    except RecipeError:
        return
    sides = [{text for text, is_kept in zip(texts, kept, strict=True) if is_kept == side} for side in (True, False)]
    assert not sides[0] & sides[1]
    assert all(sides)
    if isinstance(held_out, int):
        assert kept.sum() >= held_out
        assert len(sides[0]) <= held_out


def test_the_number_of_held_out_rows():
    assert len(held(DISTINCT, 30)) == 30
    assert len(held(DISTINCT, None)) == 25
    assert len(held(DISTINCT[:3], None)) == 1
    assert len(held([f"row {n}" for n in range(9000)], None)) == 200
    assert 60 < len(held(DISTINCT, 0.2)) < 140  # binomial(500, 0.2): 100 +- 4.5 deviations


def test_a_number_holds_out_the_rows_with_the_smallest_hashes():
    kept = is_held(DISTINCT, 30)
    found = np.array(digests(DISTINCT))
    assert sorted(found[kept]) == sorted(found)[:30]


@pytest.mark.parametrize(
    ("texts", "held_out", "said"),
    [
        (["one"], None, "held_out: the default (5 % of the rows, at least 1) of 1 row leaves no row to train on"),
        (["same"] * 9, 1, "held_out: 1 of 9 rows leaves no row"),
        (DISTINCT[:5], 5, "held_out: 5 of 5 rows leaves no row"),
        (DISTINCT[:5], 900, "held_out: 900 of 5 rows leaves no row"),
        (DISTINCT[:5], 1e-9, "held_out: 1e-09 of 5 rows holds no row out"),
    ],
)
def test_a_split_with_an_empty_side_is_refused(texts, held_out, said):
    with pytest.raises(RecipeError) as caught:
        is_held(random.sample(texts, len(texts)), held_out)
    assert said in str(caught.value)
    assert caught.value.problems[0].path == ("data", "held_out")
