"""AdamW and SGD against their update rules in float64, fused and not; and what they refuse."""

import numpy as np
import pytest
import torch

from neoplug_optimizers.adamw import AdamW
from neoplug_optimizers.fused import can_fuse
from neoplug_optimizers.sgd import SGD

GRADIENTS = np.random.default_rng(0).normal(size=(5, 7))
START = np.linspace(-1, 1, 7)


def run(plugin, **group):
    weight = torch.nn.Parameter(torch.tensor(START, dtype=torch.float32))
    optimizer = plugin.make_optimizer([{"params": [weight], "lr": 0.1, **group}])
    for gradient in GRADIENTS:
        weight.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
    return weight.detach().numpy()


def adamw(lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
    weight, mean, square = START.copy(), 0.0, 0.0
    for step, gradient in enumerate(GRADIENTS, 1):
        mean = betas[0] * mean + (1 - betas[0]) * gradient
        square = betas[1] * square + (1 - betas[1]) * gradient**2
        unbiased = mean / (1 - betas[0] ** step) / (np.sqrt(square / (1 - betas[1] ** step)) + eps)
        weight = weight - lr * weight_decay * weight - lr * unbiased
    return weight


def sgd(lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0):
    weight, velocity = START.copy(), 0.0
    for gradient in GRADIENTS:
        gradient = gradient + weight_decay * weight
        velocity = momentum * velocity + gradient
        weight = weight - lr * (gradient + momentum * velocity if nesterov else velocity)
    return weight


@pytest.mark.parametrize("options", [{}, {"betas": (0.8, 0.95), "eps": 1e-3}, {"weight_decay": 0.2}])
def test_adamw_is_its_rule(options):
    np.testing.assert_allclose(run(AdamW(**options)), adamw(**options), atol=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.5, "weight_decay": 0.2}]
)
def test_sgd_is_its_rule(options):
    np.testing.assert_allclose(run(SGD(**options)), sgd(**options), atol=1e-6)


def test_a_group_may_set_its_weight_decay():
    np.testing.assert_allclose(run(AdamW(weight_decay=0.5), weight_decay=0.0), adamw(), atol=1e-6)


@pytest.mark.parametrize("plugin", [AdamW(), SGD(momentum=0.9)])
def test_it_is_fused_where_torch_supports_it(plugin):
    def fused(**tensor):
        parameters = [torch.nn.Parameter(torch.zeros(2, **tensor))]
        return plugin.make_optimizer([{"params": parameters, "lr": 0.1}]).param_groups[0]["fused"]

    assert fused()
    assert fused(dtype=torch.bfloat16)
    assert not fused(dtype=torch.complex64)
    assert not fused(device="meta")


def test_one_unsupported_parameter_leaves_all_unfused():
    parameters = [torch.zeros(2), torch.zeros(2, dtype=torch.complex64)]
    assert not can_fuse([{"params": parameters[:1]}, {"params": parameters[1:]}])


@pytest.mark.parametrize(
    ("plugin", "options", "words"),
    [
        (AdamW, {"betas": (0.9, 1.0)}, r"^betas is"),
        (AdamW, {"betas": (-0.1, 0.9)}, r"^betas is"),
        (AdamW, {"eps": 0.0}, r"^eps is"),
        (AdamW, {"weight_decay": -0.1}, r"^weight_decay is"),
        (SGD, {"momentum": 1.0}, r"^momentum is"),
        (SGD, {"nesterov": True}, r"^nesterov needs"),
        (SGD, {"weight_decay": float("nan")}, r"^weight_decay is"),
    ],
)
def test_wrong_options_are_refused(plugin, options, words):
    with pytest.raises(ValueError, match=words):
        plugin(**options)
