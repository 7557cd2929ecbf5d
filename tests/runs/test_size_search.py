"""The search for a size, compared with the counts of all sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neoplug.runs.size_search import nearest

DIVISORS = [size for size in range(1, 193) if 192 % size == 0]
COUNTS = {
    "LoRA": lambda size: 305 * size,
    "with an offset": lambda size: 305 * size + 9000,
    "with a square": lambda size: 305 * size + 30 * size**2,
    "even sizes": lambda size: 305 * size if size % 2 == 0 else None,
    "multiples": lambda size: 305 * size if size % 6 == 0 else None,
    "up to a limit": lambda size: 305 * size if size <= 227 else None,
    "above a limit": lambda size: 305 * size if size > 8 else None,
    "falling": lambda size: 305 * (1000 - size) if size < 1000 else 0,
    "as the inverse": lambda size: 884736 // size if 192 % size == 0 else None,
    "blocks": lambda size: 305 * (size - 1) if 192 % size == 0 else None,
    "until it is whole": lambda size: 305 * min(size, 40),
    "always the same": lambda size: 305,
}


@pytest.mark.parametrize("name", COUNTS)
@given(wanted=st.integers(1, 300_000), start=st.integers(1, 300))
def test_no_other_size_has_a_nearer_count(name, wanted, start):
    looked_at = []

    def count(size):
        looked_at.append(size)
        return COUNTS[name](size)

    found = nearest(count, wanted, start, DIVISORS)
    every = [COUNTS[name](size) for size in range(1, 1100)]
    assert abs(found[0][1] - wanted) == min(abs(there - wanted) for there in every if there is not None)
    assert dict(found) == {size: COUNTS[name](size) for size in looked_at if COUNTS[name](size) is not None}
    assert len(looked_at) == len(set(looked_at))
    assert len(found) <= 20


@pytest.mark.parametrize("name", ["LoRA", "with an offset"])
@given(wanted=st.integers(9_305, 300_000), start=st.integers(1, 300))
def test_a_linear_count_takes_three_evaluations(name, wanted, start):
    evaluated = []
    nearest(lambda size: evaluated.append(size) or COUNTS[name](size), wanted, start, DIVISORS)
    assert len(evaluated) <= 3


def test_no_size_is_found_where_every_size_is_invalid():
    assert nearest(lambda size: None, 100, 8) == []
