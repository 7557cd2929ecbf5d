"""The rows of a step depend on the seed alone, not on their distribution over ranks and micro-batches."""

import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neoplug.data import BatchSampler, sampler

CALL = "BatchSampler(40, 4, 2, 1, 9).micro_batches(12, 0)"

SHAPES = [(1, 8, 1), (2, 4, 1), (8, 1, 1), (1, 4, 2), (2, 2, 2), (4, 1, 2), (1, 2, 4)]


def step_rows(plan, step):
    return sorted(n for rank in range(plan.world) for rows in plan.micro_batches(step, rank) for n in rows)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(0, 2**40), st.integers(0, 20))
def test_a_step_has_the_same_rows_however_they_are_distributed(rows, seed, step):
    unions = [step_rows(BatchSampler(rows, *shape, seed), step) for shape in SHAPES]
    assert all(union == unions[0] for union in unions)
    assert len(unions[0]) == len(set(unions[0])) > 0


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_an_epoch_has_every_row_once_and_ranks_have_equally_many_micro_batches(rows, batch_size, accumulation, world):
    plan = BatchSampler(rows, batch_size, accumulation, world, seed=5)
    for epoch in (0, 3):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        assert Counter(n for step in steps for n in step_rows(plan, step)) == Counter(range(rows))
        for step in steps:
            by_rank = [plan.micro_batches(step, rank) for rank in range(world)]
            assert len({len(micro_batches) for micro_batches in by_rank}) == 1
            assert 1 <= len(by_rank[0]) <= accumulation
            sizes = [len(micro_batch) for micro_batches in by_rank for micro_batch in micro_batches]
            assert max(sizes) <= batch_size
            assert all(by_rank[0]), "the first rank has rows in every micro-batch"


lengths = st.lists(st.integers(1, 500), min_size=1, max_size=60).map(np.array)


@settings(deadline=None)
@given(lengths, st.integers(0, 2**40), st.integers(0, 9))
def test_distribution_by_length_keeps_the_rows_of_each_step(lengths, seed, step):
    for shape in SHAPES:
        distributed = step_rows(BatchSampler(len(lengths), *shape, seed, lengths), step)
        assert distributed == step_rows(BatchSampler(len(lengths), *shape, seed), step)


@settings(deadline=None)
@given(lengths, st.sampled_from(SHAPES), st.integers(0, 9))
def test_with_distribution_by_length_micro_batches_are_sorted_and_ranks_balanced(lengths, shape, step):
    plan = BatchSampler(len(lengths), *shape, 7, lengths)
    by_rank = [[lengths[rows] for rows in plan.micro_batches(step, rank)] for rank in range(plan.world)]
    longest = [[max(rows) if len(rows) else 0 for rows in micro_batches] for micro_batches in by_rank]
    for first, second in pairwise([[n for rank in by_rank for n in rank[k]] for k in range(len(by_rank[0]))]):
        assert min(first) >= max(second)
    spread = max(map(sum, longest)) - min(map(sum, longest))  # columns that ranks compute in a step
    assert spread <= lengths.max()


@settings(deadline=None)
@given(st.lists(st.integers(1, 500), min_size=8, max_size=8).map(np.array), st.integers(0, 99))
def test_distribution_by_length_has_the_least_padding(lengths, seed):
    """Compared with all ways to put 8 rows into pairs."""

    def padded(pairs):
        return sum(2 * max(lengths[pair]) for pair in pairs)

    best = min(padded(np.reshape(order, (4, 2))) for order in pairings([*range(8)]))
    assert padded(BatchSampler(8, 2, 4, 1, seed, lengths).micro_batches(0, 0)) == best


def pairings(rows):
    """Yield every way to put rows into pairs, each as a list of rows."""
    if not rows:
        yield []
    for partner in rows[1:]:
        rest = [row for row in rows[1:] if row != partner]
        yield from ([rows[0], partner, *others] for others in pairings(rest))


def test_epochs_and_seeds_differ():
    plan = BatchSampler(50, 50, 1, 1, seed=0)
    first, second = plan.micro_batches(0, 0)[0], plan.micro_batches(1, 0)[0]
    assert first != second
    assert first != sorted(first)
    assert first != BatchSampler(50, 50, 1, 1, seed=1).micro_batches(0, 0)[0]


def test_every_row_is_equally_likely_to_be_first():
    """Over 4,000 seeds, by a chi-square test with 9 degrees of freedom, whose 99.9 % quantile is 27.9."""
    counts = Counter(BatchSampler(10, 1, 1, 1, seed).micro_batches(0, 0)[0][0] for seed in range(4000))
    assert sum((counts[n] - 400) ** 2 / 400 for n in range(10)) < 27.9


@pytest.mark.slow
@pytest.mark.parametrize("hash_seed", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_another_process_with_another_hash_seed_gives_the_same_order(hash_seed):
    """The module is run by its path, since an import of the package would import torch, which takes seconds."""
    program = f"import runpy; BatchSampler = runpy.run_path({sampler.__file__!r})['BatchSampler']; print({CALL})"
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert answer.strip() == str(eval(CALL))


def test_a_sampler_without_rows_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        BatchSampler(0, 1, 1, 1, 0)
