"""Casts around LoRA under autocast: left out where the result keeps every bit, and nowhere else."""

from copy import deepcopy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from neoplug_adapters.dora import DoRA
from neoplug_adapters.input_casts import cast_outside_autocast
from neoplug_adapters.lora import LoRA

LAYERS, TARGETS = 2, 7  # linear layers of each layer
CONFIG = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.2,
)  # fmt: skip
TOKENS = torch.arange(2, 34).view(2, 16)


def adapted(plugin, *, checkpointing=False):
    """Return a bfloat16 model with an adapter in float32 whose two matrices are drawn."""
    torch.manual_seed(0)
    base = LlamaForCausalLM(CONFIG).bfloat16().eval().requires_grad_(False)
    if checkpointing:
        enable = getattr(base, "activation_checkpointing_enable", None)  # its newer name
        (enable or base.gradient_checkpointing_enable)({"use_reentrant": False})
    model = plugin.add_adapter(model=base, batches=None, total_steps=1, rng=torch.Generator().manual_seed(1))
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = torch.randn_like(weight, dtype=torch.float32) * 0.05
    return model.train(checkpointing)


def with_casts(model):
    """Return a copy with peft's casts in all layers."""
    model = deepcopy(model)
    for layer in model.modules():
        vars(layer).pop("_cast_input_dtype", None)
    return model


def loss_and_gradients(model, dtype=torch.bfloat16):
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = model(TOKENS).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).to(torch.promote_types(dtype, torch.float32)),
                                             TOKENS.flatten())  # fmt: skip
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


class Casts(TorchDispatchMode):
    """Counts casts of bfloat16 to float32."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__ == "_to_copy":
            self.count += (args[0].dtype, result.dtype) == (torch.bfloat16, torch.float32)
        return result


def casts(model):
    with Casts() as counted, torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(TOKENS)
    return counted.count


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_keep_every_bit(checkpointing):
    model = adapted(LoRA(r=4), checkpointing=checkpointing)
    before, now = loss_and_gradients(with_casts(model)), loss_and_gradients(model)
    assert len(now) == 1 + 2 * LAYERS * TARGETS
    assert all(torch.equal(now[name], before[name]) for name in before)


def test_the_error_of_gradients_is_the_rounding_to_bfloat16():
    model = adapted(LoRA(r=4))
    exact, now = loss_and_gradients(deepcopy(model).double(), torch.float64), loss_and_gradients(model)
    for name, gradient in exact.items():
        assert (now[name].double() - gradient).norm() < 5e-2 * gradient.norm(), name


def test_no_input_is_cast_under_autocast():
    model = adapted(LoRA(r=4))
    with model.disable_adapter():
        of_the_base = casts(model)
    assert casts(model) == of_the_base
    assert casts(with_casts(model)) == of_the_base + LAYERS * TARGETS


def test_without_autocast_inputs_are_cast():
    model = adapted(LoRA(r=4))
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, with_casts(model)(TOKENS).logits)


@pytest.mark.parametrize("plugin", [LoRA(r=4, lora_dropout=0.1), DoRA(r=4)], ids=["dropout", "variant"])
def test_layers_that_would_compute_otherwise_keep_their_casts(plugin):
    layers = [layer for layer in adapted(plugin).modules() if hasattr(layer, "cast_input_dtype_enabled")]
    assert len(layers) == LAYERS * TARGETS
    assert not any(layer._cast_input_dtype is cast_outside_autocast for layer in layers)
