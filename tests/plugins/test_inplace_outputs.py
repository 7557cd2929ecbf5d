"""Adapters that change outputs in place, on 4-bit layers with a bias: gradients equal those of the dequantised base."""

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from torch.nn.functional import cross_entropy

from neoplug.models.load import load_model
from neoplug.models.resolve import locate
from neoplug.registry import Plugins
from neoplug.testing.families import make
from neoplug_adapters.c3a import C3A
from neoplug_adapters.gralora import GraLoRA
from neoplug_models.nf4 import NF4

# peft calls transformers by old names
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*removed in v6:FutureWarning")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make("qwen2", tmp_path_factory.mktemp("qwen2"))


def loaded(folder, **plugins):
    return load_model(
        locate(str(folder)), plugins=Plugins({"student.load": plugins}), role="student", section="student.load",
        dtype=torch.float32, device="cpu", attn_implementation=None,
    )  # fmt: skip


def dequantised(folder):
    quantised, plain = loaded(folder, nf4=NF4(compute_dtype="float32")), loaded(folder)
    for name, layer in quantised.named_modules():
        if type(layer).__name__ == "Linear4bit":
            plain.get_submodule(name).weight.data = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    return quantised, plain


@pytest.mark.parametrize("plugin", [C3A, GraLoRA])
def test_gradients_are_those_of_the_dequantised_base(plugin, folder):
    ids, gradients = torch.arange(3, 27).reshape(2, 12), []
    for model in dequantised(folder):
        assert model.model.layers[0].self_attn.q_proj.bias is not None
        student = plugin().add_adapter(model, None, 2, torch.Generator().manual_seed(0))
        noise = torch.Generator().manual_seed(1)
        trained = {name: weight for name, weight in student.named_parameters() if weight.requires_grad}
        for weight in trained.values():
            weight.data += 0.01 * torch.randn(weight.shape, generator=noise)
        logits = student.train()(input_ids=ids, use_cache=False).logits[:, :-1]
        cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        gradients.append({name: weight.grad for name, weight in trained.items()})
    four, whole = gradients
    for name, gradient in four.items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-3, atol=1e-6, msg=name)
        assert gradient.any()
