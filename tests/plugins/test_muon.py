"""Muon: the effect of a step on singular values, which optimizer trains which parameter, and refusals."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from neoplug.errors import UsageError
from neoplug_optimizers import muon
from neoplug_optimizers.muon import Muon

RATE = 0.02
RNG = np.random.default_rng(0)


def newton_schulz(matrix, steps):
    """The quintic iteration a s + b s^3 + c s^5 on the singular values themselves, in float64 (Jordan et al. 2024)."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.linalg.norm(matrix)
    for _ in range(steps):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left * values @ right


def rule(start, gradients, steps=5, momentum=0.95, nesterov=True, scale=None, weight_decay=0.0):
    weight, mean = start.copy(), np.zeros_like(start)
    for gradient in gradients:
        mean = momentum * mean + (1 - momentum) * gradient
        update = (1 - momentum) * gradient + momentum * mean if nesterov else mean
        scaled = 0.2 * np.sqrt(max(start.shape)) if scale is None else scale
        weight = weight - RATE * (weight_decay * weight + scaled * newton_schulz(update, steps))
    return weight


@pytest.mark.parametrize("shape", [(8, 24), (24, 8)])
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, {}),
        ({"nesterov": False, "momentum": 0.5, "ns_steps": 3}, {"nesterov": False, "momentum": 0.5, "steps": 3}),
        ({"adjust_lr_fn": "original", "weight_decay": 0.5}, {"scale": "original", "weight_decay": 0.5}),
    ],
)
def test_a_step_follows_the_rule_on_singular_values(shape, options, named):
    """Reference: a singular value decomposition in float64; torch iterates in bfloat16, so about two digits agree."""
    start, gradients = RNG.normal(size=shape), RNG.normal(size=(3, *shape))
    if named.get("scale") == "original":
        named = named | {"scale": np.sqrt(max(1, shape[0] / shape[1]))}
    layer = nn.Linear(*shape[::-1], bias=False)
    layer.weight.data = torch.tensor(start, dtype=torch.float32)
    optimizer = Muon(**options).make_optimizer([{"params": [layer.weight], "lr": RATE}], layer)
    for gradient in gradients:
        layer.weight.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
    expected = rule(start, gradients, **named)
    moved = np.abs(expected - start).max()
    np.testing.assert_allclose(layer.weight.detach().numpy(), expected, atol=0.05 * moved)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.hidden, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9, bias=False)

    def get_output_embeddings(self):
        return self.head


def test_vectors_embeddings_and_the_head_are_trained_by_adamw():
    """Reference: torch's two optimizers, each on its parameters; learning rates and decays of groups are kept."""
    ours, theirs = Tied(), Tied()
    theirs.load_state_dict(ours.state_dict())
    weights = dict(ours.named_parameters())
    fast = {"params": [weights["hidden.weight"], weights["hidden.bias"]], "lr": 4 * RATE}
    slow = {"params": [weights["embedding.weight"], weights["head.weight"]], "lr": RATE, "weight_decay": 0.3}
    optimizer = Muon().make_optimizer([fast, slow], ours)
    rest = [
        {"params": [theirs.hidden.bias], "lr": 4 * RATE},
        {**slow, "params": [theirs.embedding.weight, theirs.head.weight]},
    ]
    references = [
        torch.optim.Muon([theirs.hidden.weight], lr=4 * RATE, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, weight_decay=0.0, fused=True),
    ]
    for step in range(3):
        for model, steppers in ((ours, [optimizer]), (theirs, references)):
            torch.manual_seed(step)
            for weight in model.parameters():
                weight.grad = torch.randn_like(weight)
            for stepper in steppers:
                stepper.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert optimizer.param_groups[0]["lr"] == 4 * RATE  # the logged learning rate is that of the first group


def test_without_a_matrix_it_is_refused():
    model = nn.Embedding(4, 4)
    with pytest.raises(UsageError, match=r"finds no matrix[\s\S]*why: [\s\S]*fix: name `adamw`"):
        Muon().make_optimizer([{"params": list(model.parameters()), "lr": RATE}], model)


@pytest.mark.parametrize(("torch_version", "refused"), [("2.8.0+cpu", True), ("2.9.1", False), ("2.13.0+cu130", False)])
def test_a_torch_without_muon_is_refused(monkeypatch, torch_version, refused):
    monkeypatch.setattr(muon, "version", {"torch": torch_version}.get)
    problems = Muon().check(SimpleNamespace(optimizer={"muon@fast": {}}))
    assert bool(problems) == refused
    assert all(problem.path == ("optimizer", "muon@fast") and "2.9" in problem.fix for problem in problems)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"momentum": 1.0}, r"^momentum is"),
        ({"ns_steps": 0}, r"^ns_steps is"),
        ({"weight_decay": -0.1}, r"^weight_decay is"),
        ({"betas": (0.9, 1.0)}, r"^betas is"),
        ({"eps": 0.0}, r"^eps is"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Muon(**options)
