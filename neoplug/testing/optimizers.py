"""Conformance tests of optimizers, on a model with a matrix, a bias and an embedding.

from neoplug.testing import check_optimizer

def test_mine():
    check_optimizer(Mine())
"""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from neoplug.testing.hooks import answer
from neoplug.testing.loss_examples import hook
from neoplug.testing.search import Broken, Kit, properties_of


def check_optimizer(optimizer: Any) -> None:
    """Test every property of optimizers.

    Raises AssertionError for a property that does not hold.
    """
    OPTIMIZER.hold(optimizer, 0)


class OptimizerProperties:
    """The properties of optimizers: each method without underscore, which raises Broken where it does not hold."""

    def updates(self, optimizer: Any) -> None:
        """A step changes every parameter, and lowers a loss that it follows."""
        model = _model()
        before, loss = [weight.detach().clone() for weight in model.parameters()], _loss(model, range(70)).item()
        made, schedule = _make(optimizer, model)
        for _ in range(10):
            _step(model, made, schedule, range(70))
        names = [name for name, _ in model.named_parameters()]
        moved = [not torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True)]
        if not all(moved):
            raise Broken(f"`{names[moved.index(False)]}` does not change in ten steps")
        if not _loss(model, range(70)).item() < loss:
            raise Broken("ten steps do not lower the mean square of a linear layer's output")

    def groups(self, optimizer: Any) -> None:
        """Each parameter is updated at the rate of its group, as the schedule changes it."""
        model = _model()
        made, schedule = _make(optimizer, model)
        _train(model, made, schedule, range(1))
        rates = {id(weight): group["lr"] for group in made.param_groups for weight in group["params"]}
        for group in _groups(model):
            for weight in group["params"]:
                if abs(rates[id(weight)] - group["lr"] / 2) > 1e-12:
                    raise Broken(f"a rate of {group['lr']}, halved by the schedule, is {rates[id(weight)]:.3g}")
        bias, before = model[1].bias, [weight.detach().clone() for weight in model.parameters()]
        for group in made.param_groups:
            group["lr"] *= any(weight is bias for weight in group["params"])
        _train(model, made, schedule, range(1, 2))
        _, matrix, moved = (not torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))
        if matrix or not moved:
            what = "has the rate 0 changes" if matrix else "has a rate does not change"
            raise Broken(f"a parameter whose group {what}")

    def resumed(self, optimizer: Any) -> None:
        """Resumed from its state as plain data, it gives the same bits."""
        whole, broken, resumed = _model(), _model(), _model()
        _train(whole, *_make(optimizer, whole), range(6))
        made, schedule = _make(optimizer, broken)
        _train(broken, made, schedule, range(3))
        file = BytesIO()
        torch.save([broken.state_dict(), made.state_dict(), schedule.state_dict()], file)
        file.seek(0)
        weights, state, rates = torch.load(file, weights_only=True)
        resumed.load_state_dict(weights)
        made, schedule = _make(optimizer, resumed)
        made.load_state_dict(state)
        schedule.load_state_dict(rates)
        _train(resumed, made, schedule, range(3, 6))
        if not all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True)):
            raise Broken("after it is resumed, its steps are not those of the uninterrupted run")
        if any(torch.equal(a, b) for a, b in zip(resumed.parameters(), broken.parameters(), strict=True)):
            raise Broken("after it is resumed, a parameter does not change")

    def planned(self, optimizer: Any) -> None:
        """On the meta device its state has the size that it has in a run, as a plan needs."""
        sizes = []
        for device in ("cpu", "meta"):
            model = _model().to(device)
            made, _ = _make(optimizer, model)
            for weight in model.parameters():
                weight.grad = torch.ones_like(weight)
            made.step()
            tensors = [value for state in made.state.values() for value in state.values()]
            sizes.append(sorted(tuple(tensor.shape) for tensor in tensors if isinstance(tensor, torch.Tensor)))
        if sizes[0] != sizes[1]:
            raise Broken(f"its state has the shapes {sizes[1]} in a plan and {sizes[0]} in a run")


OPTIMIZER = Kit("optimizer", {}, once=properties_of(OptimizerProperties()))


def _model() -> nn.Sequential:
    """Return a model with a matrix that is large enough for 8-bit states, a bias, and an embedding."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(70, 64), nn.Linear(64, 80))


def _groups(model: nn.Sequential) -> list[dict[str, Any]]:
    embedding, linear = model
    rest = {"params": [linear.bias, embedding.weight], "lr": 3e-3}
    return [{"params": [linear.weight], "lr": 1e-2}, rest]


def _make(optimizer: Any, model: nn.Sequential) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """Return the optimizer, and a schedule that halves its rates after the first step.

    Raises TypeError where the plugin has no `make_optimizer`.
    """
    if hook(optimizer, "make_optimizer") is None:
        raise TypeError(f"{type(optimizer).__name__} has no `make_optimizer`")
    made = answer(optimizer, "make_optimizer", groups=_groups(model), model=model)
    return made, LambdaLR(made, lambda step: 1 / (1 + step))


def _loss(model: nn.Module, ids: Iterable[int]) -> torch.Tensor:
    loss: torch.Tensor = model(torch.tensor(list(ids))).square().mean()
    return loss


def _step(model: nn.Module, made: torch.optim.Optimizer, schedule: LambdaLR, ids: Iterable[int]) -> None:
    torch.autograd.backward(_loss(model, ids))
    made.step()
    schedule.step()
    made.zero_grad()


def _train(model: nn.Module, made: torch.optim.Optimizer, schedule: LambdaLR, steps: Iterable[int]) -> None:
    for step in steps:
        _step(model, made, schedule, [(step + number) % 70 for number in range(40)])
