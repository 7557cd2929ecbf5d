"""Schedules equal those of transformers, step by step, and a schedule is a function of the step alone."""

import logging
from itertools import pairwise

import pytest
import torch
from transformers.optimization import (
    get_constant_schedule,
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_inverse_sqrt_schedule,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)

from neoplug.recipe import Train
from neoplug.registry import Plugins
from neoplug.training.optim import make_schedule, warn_without_warmup
from neoplug_schedules.constant import Constant
from neoplug_schedules.constant_with_warmup import ConstantWithWarmup
from neoplug_schedules.cosine import Cosine
from neoplug_schedules.inverse_sqrt import InverseSqrt
from neoplug_schedules.linear import Linear
from neoplug_schedules.wsd import WSD

STEPS, WARMUP = 12, 4


def rates(make):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5)
    schedule = make(optimizer)
    found = []
    for _ in range(STEPS):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


def ours(plugin, **train):
    plugins = Plugins({"schedule": {"it": plugin}})
    return rates(lambda optimizer: make_schedule(optimizer, plugins, Train(max_steps=STEPS, **train), STEPS))


@pytest.mark.parametrize("warmup", [0, WARMUP, WARMUP / STEPS])
@pytest.mark.parametrize(
    ("plugin", "theirs"),
    [
        (Cosine(), lambda optimizer, count: get_cosine_schedule_with_warmup(optimizer, count, STEPS)),
        (Linear(), lambda optimizer, count: get_linear_schedule_with_warmup(optimizer, count, STEPS)),
        (Constant(), lambda optimizer, _: get_constant_schedule(optimizer)),
        (ConstantWithWarmup(), lambda optimizer, count: get_constant_schedule_with_warmup(optimizer, count)),
        (InverseSqrt(), lambda optimizer, count: get_inverse_sqrt_schedule(optimizer, count)),
        (InverseSqrt(7), lambda optimizer, count: get_inverse_sqrt_schedule(optimizer, count, 7)),
    ],
)
def test_a_schedule_is_that_of_transformers(plugin, theirs, warmup):
    count = WARMUP if warmup else 0
    assert ours(plugin, warmup_steps=warmup) == rates(lambda optimizer: theirs(optimizer, count))


@pytest.mark.parametrize("decay", [3, 3 / STEPS])
@pytest.mark.parametrize("form", ["linear", "cosine", "1-sqrt"])
def test_a_decay_at_the_end_is_that_of_transformers(form, decay):
    found = ours(WSD(decay, form, min_lr_ratio=0.1), warmup_steps=WARMUP)
    options = {"num_stable_steps": STEPS - WARMUP - 3, "decay_type": form, "min_lr_ratio": 0.1}
    theirs = rates(lambda optimizer: get_wsd_schedule(optimizer, WARMUP, 3, **options))
    assert found[WARMUP:] == pytest.approx(theirs[WARMUP:])  # their warm-up begins at the smallest rate


def test_a_cosine_may_end_above_zero():
    found = ours(Cosine(0.25), warmup_steps=WARMUP)
    theirs = rates(lambda it: get_cosine_with_min_lr_schedule_with_warmup(it, WARMUP, STEPS, min_lr_rate=0.25))
    assert found == pytest.approx(theirs)


def test_a_decay_that_is_longer_than_what_is_left_begins_after_the_warmup():
    found = ours(WSD(STEPS, "linear"), warmup_steps=WARMUP)
    assert found[WARMUP] == 0.5
    assert all(later < earlier for earlier, later in pairwise(found[WARMUP:]))


@pytest.mark.parametrize(
    ("plugin", "train", "warned"),
    [(Constant(), {"warmup_steps": 3}, True), (Constant(), {}, False), (Constant(), {"warmup_steps": 0}, False),
     (Cosine(), {"warmup_steps": 3}, False)],
)  # fmt: skip
def test_a_warmup_that_has_no_effect_is_reported(plugin, train, warned, caplog):
    with caplog.at_level(logging.WARNING):
        warn_without_warmup(Plugins({"schedule": {"it": plugin}}), Train(max_steps=STEPS, **train))
    assert ("has no warm-up" in caplog.text) == warned
