"""Every installed schedule: its rates are finite and not negative, rise during a warm-up, and survive a resume."""

from itertools import pairwise
from math import isfinite

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neoplug.recipe import Train
from neoplug.registry import Plugins, answered
from neoplug.training.optim import make_schedule

LENGTHS = st.integers(1, 40).flatmap(lambda total: st.tuples(st.just(total), st.integers(0, total + 3)))
LEARNING_RATES = (0.5, 0.125)  # of two groups


def has_warmup(schedule):
    return "warmup_steps" in answered(type(schedule))["rate"].signature.parameters


def test_rates_are_finite_not_negative_and_rise_during_the_warmup(schedule):
    """Also with a warm-up that is longer than the run, and at the step after the last."""

    plugins = Plugins({"schedule": {"it": schedule}})

    @settings(max_examples=25)
    @given(LENGTHS)
    def holds(lengths):
        total, warmup = lengths
        found = [plugins.one("rate", step=n, total_steps=total, warmup_steps=warmup) for n in range(total + 1)]
        assert all(isfinite(rate) and rate >= 0 for rate in found)
        if has_warmup(schedule):
            assert all(earlier <= later for earlier, later in pairwise(found[:total][: warmup + 1]))

    holds()


def rates(schedule, total, warmup, resumed_at=None):
    """Return the learning rates of two groups at each step; the scheduler goes on from its state at `resumed_at`."""

    def make():
        groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": rate} for rate in LEARNING_RATES]
        optimizer = torch.optim.SGD(groups, lr=1.0)
        train = Train(max_steps=total, warmup_steps=float(warmup))
        return optimizer, make_schedule(optimizer, Plugins({"schedule": {"it": schedule}}), train, total)

    optimizer, scheduler = make()
    found = []
    for step in range(total):
        if step == resumed_at:
            states = optimizer.state_dict(), scheduler.state_dict()
            optimizer, scheduler = make()
            optimizer.load_state_dict(states[0])
            scheduler.load_state_dict(states[1])
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("resumed_at", [1, 2, 3, 8, 11])
def test_a_resumed_run_has_the_rates_of_one_that_ran_through(schedule, resumed_at):
    whole = rates(schedule, 12, 3)
    assert rates(schedule, 12, 3, resumed_at) == whole
    assert all(second == first / 4 for first, second in whole)  # every group has its own rate, times the same number
