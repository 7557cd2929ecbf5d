"""Checkpoints: damaged ones are skipped, and replaced when their steps are repeated."""

import pytest
import torch
from torch import nn

from neoplug.registry import Plugins
from neoplug.training import checkpoint


@pytest.fixture
def save(tmp_path):
    """Return a function that saves a model whose weight is `value` as the checkpoint of a step."""
    model = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    plugins = Plugins({})

    def save(step, value):
        nn.init.constant_(model.weight, value)
        checkpoint.save(tmp_path, step, model, optimizer, schedule, plugins, [checkpoint.pack(plugins)], {})

    return save


def restored(path):
    model = nn.Linear(1, 1, bias=False)
    checkpoint.restore(path, model, Plugins({}))
    return model.weight.item()


def test_a_damaged_checkpoint_is_replaced_when_its_step_is_repeated(save, tmp_path):
    save(2, 1.0)
    save(4, 2.0)
    (tmp_path / "step-4" / "state.json").write_text('{"form')
    assert checkpoint.latest(tmp_path) == tmp_path / "step-2"
    save(4, 3.0)
    assert checkpoint.latest(tmp_path) == tmp_path / "step-4"
    assert restored(tmp_path / "step-4") == 3.0


def test_a_damaged_checkpoint_does_not_count_among_the_newest_that_are_kept(save, tmp_path):
    save(4, 2.0)
    (tmp_path / "step-4" / "state.json").write_text('{"form')
    save(3, 1.0)
    checkpoint.prune(tmp_path, limit=1)
    assert checkpoint.latest(tmp_path) == tmp_path / "step-3"
