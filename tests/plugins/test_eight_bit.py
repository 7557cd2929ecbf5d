"""AdamW and Lion in 8 bits: exact where states are 0 or in float32, close to their rules where states are quantised."""

import numpy as np
import pytest
import torch

from neoplug_optimizers.adamw_8bit import AdamW8bit
from neoplug_optimizers.lion_8bit import Lion8bit
from neoplug_optimizers.paged_adamw_8bit import PagedAdamW8bit

SIZE = 8192  # 32 blocks of 256
RNG = np.random.default_rng(0)
START, GRADIENTS = RNG.normal(size=SIZE), RNG.normal(size=(8, SIZE))
DECAY = {"weight_decay": 0.2}


def adamw(steps, lr=0.01, weight_decay=0.2):
    weight, mean, square = START.copy(), 0.0, 0.0
    for step, gradient in enumerate(GRADIENTS[:steps], 1):
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        unbiased = mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        weight = weight - lr * (weight_decay * weight + unbiased)
    return weight


def lion(steps, lr=0.01, weight_decay=0.2):
    weight, mean = START.copy(), 0.0
    for gradient in GRADIENTS[:steps]:
        weight = weight - lr * (np.sign(0.9 * mean + 0.1 * gradient) + weight_decay * weight)
        mean = 0.99 * mean + 0.01 * gradient
    return weight


def run(plugin, steps):
    weight = torch.nn.Parameter(torch.tensor(START, dtype=torch.float32))
    optimizer = plugin.make_optimizer([{"params": [weight], "lr": 0.01}])
    for gradient in GRADIENTS[:steps]:
        weight.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
    return weight.detach().numpy(), optimizer.state[weight]


CASES = pytest.mark.parametrize(
    ("plugin", "rule"), [(AdamW8bit, adamw), (PagedAdamW8bit, adamw), (Lion8bit, lion)], ids=lambda case: case.__name__
)


@CASES
def test_small_tensors_follow_the_rule_in_float32(plugin, rule):
    found, state = run(plugin(**DECAY, min_8bit_size=SIZE + 1), 8)
    np.testing.assert_allclose(found, rule(8), rtol=0, atol=3e-6)
    assert state["state1"].dtype == torch.float32


@CASES
def test_large_tensors_have_8_bit_states_and_stay_near_the_rule(plugin, rule):
    """The first step starts from exact zeros; later ones have rounding errors of 8 bits."""
    np.testing.assert_allclose(run(plugin(**DECAY), 1)[0], rule(1), atol=1e-6)
    found, state = run(plugin(**DECAY), 8)
    bytes_of_state = [value for name, value in state.items() if name in ("state1", "state2")]
    assert {value.dtype for value in bytes_of_state} == {torch.uint8}
    assert len(bytes_of_state) == (1 if rule is lion else 2)
    moved = np.abs(rule(8) - START).mean()
    assert 0 < np.abs(found - rule(8)).mean() < 0.03 * moved


@CASES
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"betas": (0.9, 1.0)}, r"^betas is"),
        ({"weight_decay": -0.1}, r"^weight_decay is"),
        ({"min_8bit_size": -1}, r"^min_8bit_size is"),
    ],
)
def test_wrong_options_are_refused(plugin, rule, options, words):
    with pytest.raises(ValueError, match=words):
        plugin(**options)
