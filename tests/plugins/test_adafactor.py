"""Adafactor against the update rule of the paper, written out in float64."""

import numpy as np
import pytest
import torch

from neoplug_optimizers.adafactor import Adafactor

RNG = np.random.default_rng(0)
START = RNG.normal(size=(6, 9))
GRADIENTS = RNG.normal(size=(5, 6, 9)) * np.array([1, 3, 0.1, 1, 2])[:, None, None]


def rule(start, gradients, lr=0.1, clip=1.0, decay=-0.8, weight_decay=0.0):
    """Algorithm 4 and 5 of the paper (arXiv 1804.04235), with `lr` in place of the relative step."""
    weight, squares = start.copy(), 0.0
    for step, gradient in enumerate(gradients, 1):
        beta = 1 - step**decay
        square = gradient**2 + 1e-30
        squares = beta * squares + (1 - beta) * square
        rows, columns = squares.mean(-1, keepdims=True), squares.mean(0, keepdims=True)
        second = rows * columns / squares.mean() if square.ndim == 2 else squares
        update = gradient / np.sqrt(second)
        update /= max(1.0, np.sqrt((update**2).mean()) / clip)
        weight = weight - lr * weight_decay * weight - lr * update
    return weight


def run(plugin, start, gradients):
    weight = torch.nn.Parameter(torch.tensor(start, dtype=torch.float32))
    optimizer = plugin.make_optimizer([{"params": [weight], "lr": 0.1}])
    for gradient in gradients:
        weight.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
    return weight.detach().numpy(), optimizer.state[weight]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, {}),
        ({"clip_threshold": 0.5}, {"clip": 0.5}),
        ({"decay_rate": -0.3, "weight_decay": 0.2}, {"decay": -0.3, "weight_decay": 0.2}),
    ],
)
@pytest.mark.parametrize("row", [slice(None), 0], ids=["matrix", "vector"])
def test_it_is_its_rule(options, named, row):
    found, state = run(Adafactor(**options), START[row], GRADIENTS[:, row])
    np.testing.assert_allclose(found, rule(START[row], GRADIENTS[:, row], **named), atol=1e-6)
    kept = sum(value.numel() for name, value in state.items() if name.startswith("exp"))
    assert kept == (6 + 9 if found.ndim == 2 else 9)


def test_the_step_of_a_zero_matrix_has_the_size_of_the_learning_rate():
    """LoRA's B: a step scaled by the size of the weights would be 1,000 times smaller."""
    found, _ = run(Adafactor(), np.zeros_like(START), GRADIENTS[:1])
    assert 0.05 < np.sqrt((found**2).mean()) <= 0.1 + 1e-6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"eps": 0.0}, r"^eps is"),
        ({"clip_threshold": 0.0}, r"^clip_threshold is"),
        ({"decay_rate": 0.0}, r"^decay_rate is"),
        ({"weight_decay": -1.0}, r"^weight_decay is"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Adafactor(**options)
