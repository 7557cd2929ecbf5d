"""Every property of schedules holds for every installed one, and a resumed run has the rates of a whole one."""

import pytest
import torch

from neoplug.recipe import Train
from neoplug.registry import Plugins
from neoplug.testing import SCHEDULE, NotApplicable
from neoplug.training.optim import make_schedule

LEARNING_RATES = (0.5, 0.125)  # of two groups


@pytest.mark.parametrize("name", SCHEDULE.properties)
def test_a_property_of_schedules(name, schedule):
    try:
        SCHEDULE.properties[name](schedule)
    except NotApplicable as reason:
        pytest.skip(str(reason))


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
