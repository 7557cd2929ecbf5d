"""The fused kernel on a CPU, in a process in which Triton interprets it.

    TRITON_INTERPRET=1 python -m tests.training.interpreted CASES FOUND

reads what `torch.save` wrote, {name: (function, arguments)}, and writes what each function of this module returns.
"""

import sys
from dataclasses import replace

import torch

from neoplug.models.head import Head
from neoplug.models.vocabulary import Vocabulary
from neoplug.registry import Plugins
from neoplug.runs.steps import make_losses
from neoplug.teachers.signals import StatesSignal
from neoplug.training import fusion
from neoplug.training.formula import formula_of
from neoplug.training.fused_tile import fused_tile
from neoplug.training.objective import Loss, objective


def tile(plugins, weights, student, teacher, labels):
    """Return the losses and the gradient of the kernel."""
    formulas = [formula_of(plugin) for plugin in plugins.values()]
    values = fused_tile(formulas, student, teacher, labels, torch.tensor(weights))
    return values, student


def step(plugins, weights, hidden, head, states, teacher, labels):
    """Return the objective, each loss of each token, and the gradients of the hidden states and of the head."""
    vocabulary = Vocabulary(len(head.weight))
    losses = [
        Loss(loss.name, weight, refused, refused, formula_of(plugins[loss.name]))
        for loss, weight in zip(make_losses(Plugins({"loss": plugins})), weights, strict=True)
    ]
    hidden.requires_grad_()
    signal = StatesSignal(states, Head(teacher, vocabulary))
    total, values = objective(losses, hidden, Head(head, vocabulary), signal, labels, 0.0)
    total.backward()
    return total.detach(), values, hidden.grad, head.weight.grad


def refused(**_):
    """Take the place of the hooks, which must not be called."""
    raise AssertionError("a hook was called")


def disagreement(plugins, weights, declared, vocabulary):
    """Return how the kernel differs from the hooks, where the plugins `declared` state the formulas."""
    losses = make_losses(Plugins({"loss": plugins}))
    losses = [replace(loss, weight=weight) for loss, weight in zip(losses, weights, strict=True)]
    fused = [Loss(loss.name, loss.weight, refused, None, formula_of(declared[loss.name])) for loss in losses]
    return fusion.disagreement(losses, fused, vocabulary, torch.device("cpu"))


if __name__ == "__main__":
    cases = torch.load(sys.argv[1], weights_only=False)
    torch.save({name: globals()[function](*arguments) for name, (function, arguments) in cases.items()}, sys.argv[2])
