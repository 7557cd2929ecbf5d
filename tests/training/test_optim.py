"""The schedule of the learning rate is that of transformers with the same name, step by step."""

import logging

import pytest
import torch
from transformers import get_scheduler

from neoplug.recipe import Train
from neoplug.training.optim import make_schedule

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


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "constant_with_warmup"])
@pytest.mark.parametrize("warmup", [0, WARMUP, WARMUP / STEPS])
def test_a_schedule_is_that_of_transformers(name, warmup):
    train = Train(lr_scheduler_type=name, warmup_steps=warmup, max_steps=STEPS)
    ours = rates(lambda optimizer: make_schedule(optimizer, train, STEPS))
    count = WARMUP if warmup else 0
    theirs = rates(lambda optimizer: get_scheduler(name, optimizer, num_warmup_steps=count, num_training_steps=STEPS))
    assert ours == theirs
    if name == "constant":
        assert ours == [0.5] * STEPS


@pytest.mark.parametrize(
    ("options", "warned"),
    [({"lr_scheduler_type": "constant", "warmup_steps": 3}, True), ({"lr_scheduler_type": "constant"}, False),
     ({"lr_scheduler_type": "constant", "warmup_steps": 0}, False), ({"warmup_steps": 3}, False)],
)  # fmt: skip
def test_a_warmup_that_has_no_effect_is_reported(options, warned, caplog):
    with caplog.at_level(logging.WARNING):
        rates(lambda optimizer: make_schedule(optimizer, Train(max_steps=STEPS, **options), STEPS))
    assert ("constant_with_warmup" in caplog.text) == warned
