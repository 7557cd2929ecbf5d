"""Every installed optimizer: it resumes bit for bit from plain data, and applies each group's scheduled rate."""

from io import BytesIO

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from neoplug.testing import call


def model():
    """Return a model with a matrix large enough for 8-bit states, a bias, and an embedding."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(70, 64), nn.Linear(64, 80))


def groups_of(model):
    embedding, linear = model
    rest = {"params": [linear.bias, embedding.weight], "lr": 3e-3}
    return [{"params": [linear.weight], "lr": 1e-2}, rest]


def make(optimizer, model):
    made = call(optimizer.make_optimizer, {"groups": groups_of(model), "model": model})
    return made, LambdaLR(made, lambda step: 1 / (1 + step))


def train(model, made, schedule, steps):
    for step in steps:
        ids = torch.arange(step, step + 40) % 70
        model(ids).square().mean().backward()
        made.step()
        schedule.step()
        made.zero_grad()


def test_it_resumes_bit_for_bit_from_plain_data(optimizer):
    whole, broken, resumed = model(), model(), model()
    train(whole, *make(optimizer, whole), range(6))
    made, schedule = make(optimizer, broken)
    train(broken, made, schedule, range(3))
    file = BytesIO()
    torch.save([broken.state_dict(), made.state_dict(), schedule.state_dict()], file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)
    parts = resumed, *make(optimizer, resumed)
    for part, state in zip(parts, stored, strict=True):
        part.load_state_dict(state)
    train(*parts, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(resumed.parameters(), broken.parameters(), strict=True))


def test_each_group_keeps_its_scheduled_rate(optimizer):
    student = model()
    made, schedule = make(optimizer, student)
    train(student, made, schedule, range(1))
    rate = {id(weight): group["lr"] for group in made.param_groups for weight in group["params"]}
    assert rate == {id(p): group["lr"] / 2 for group in groups_of(student) for p in group["params"]}
    before = [weight.detach().clone() for weight in student.parameters()]
    for group in made.param_groups:
        group["lr"] *= any(weight is student[1].bias for weight in group["params"])
    train(student, made, schedule, range(1, 2))
    moved = [not torch.equal(now, then) for now, then in zip(student.parameters(), before, strict=True)]
    assert moved[1:] == [False, True]


def test_the_state_on_the_meta_device_has_the_real_size(optimizer):
    """A step on the meta device gives state of the same size as a real step."""
    sizes = []
    for device in ("cpu", "meta"):
        student = model().to(device)
        made, _ = make(optimizer, student)
        for weight in student.parameters():
            weight.grad = torch.ones_like(weight)
        made.step()
        tensors = [value for state in made.state.values() for value in state.values()]
        sizes.append(sorted(tuple(tensor.shape) for tensor in tensors if isinstance(tensor, torch.Tensor)))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw_8bit", "lion_8bit", "adafactor", "muon", "adamw", "sgd"])
def test_the_optimizer_is_installed(name):
    from neoplug.registry import installed

    assert name in {entry.name for entry in installed()}
