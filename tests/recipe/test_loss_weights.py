"""A loss's weight over the run, compared with the learning rate schedules of transformers."""

from math import isclose

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from neoplug.recipe.loss_weights import Constant, Cosine, Linear, Step, Weight

FACTORS = st.floats(0, 100)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(Linear(), get_linear_schedule_with_warmup), (Cosine(), get_cosine_schedule_with_warmup)]
)
def test_from_1_to_0_they_equal_learning_rate_schedules_of_transformers(ours, theirs):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = theirs(optimizer, num_warmup_steps=0, num_training_steps=10)
    for step in range(11):
        assert isclose(ours(step / 10), schedule.get_last_lr()[0], abs_tol=1e-12)
        optimizer.step()
        schedule.step()


@given(start=FACTORS, end=FACTORS, progress=st.floats(0, 1))
def test_they_go_from_start_to_end_and_stay_between(start, end, progress):
    for kind in (Linear, Cosine, Step):
        schedule = kind(start=start, end=end)
        assert isclose(schedule(0.0), start, abs_tol=1e-12)
        assert isclose(schedule(1.0), end, abs_tol=1e-12)
        assert min(start, end) - 1e-9 <= schedule(progress) <= max(start, end) + 1e-9
    if start != end:
        assert Weight(2.0, Linear(start, end)).ever_counts


def test_step_changes_the_weight_once():
    schedule = Step(at=0.25, start=0.5, end=2.0)
    assert [schedule(progress) for progress in (0.0, 0.2, 0.25, 1.0)] == [0.5, 0.5, 2.0, 2.0]


def test_which_schedules_vary_and_which_are_always_zero():
    assert not Weight(0.5, Constant()).varies
    assert Weight(0.5, Linear()).varies
    assert Weight(0.5, calibrate="other").calibrated(3.0).varies
    assert Weight(0.5, calibrate="other", schedule=Linear()).calibrated(3.0).at(0.5) == 1.5
    assert not Weight(1.0, Linear(0.0, 0.0)).ever_counts
    assert not Weight(0.0).ever_counts
