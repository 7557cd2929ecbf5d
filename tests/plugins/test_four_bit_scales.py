"""nf4 and fp4 against their definition in float64: a published value times the scale of the weight's own block of 64.

Blocks run over the flattened matrix. In some of the layers they end with the rows, in others not, and in some the last
block is not full.
"""

from itertools import product

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from neoplug.models.load import load_model
from neoplug.models.resolve import locate
from neoplug.registry import Plugins
from neoplug.testing.families import make
from neoplug_models.fp4 import FP4
from neoplug_models.nf4 import NF4

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*removed in v6:FutureWarning", "ignore:Merge lora module to 4-bit:UserWarning"
)
# QLoRA, arXiv 2305.14314, appendix E
NORMAL = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
# Sign, two bits of exponent, one of mantissa, as twelfths of the largest; 0.0625 is the subnormal number.
FLOATS = [twelfths / 12 for twelfths in (0, 0.0625, 8, 12, 4, 6, 2, 3)]
VALUES = {
    "nf4": torch.tensor(NORMAL, dtype=torch.float64),
    "fp4": torch.tensor(FLOATS + [-value for value in FLOATS], dtype=torch.float64),
}
INPUTS = [
    (48, 32, 24),
    (64, 96, 80),
    (128, 576, 160),
]  # of the layers of a model: most of them, MLP down, attention out
KINDS = list(product((NF4, FP4), (True, False)))


@pytest.fixture(scope="module", params=INPUTS, ids=str)
def folder(request, tmp_path_factory):
    hidden, inner, attention = request.param
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "head_dim": attention // 4}
    return make("llama", tmp_path_factory.mktemp("widths"), num_hidden_layers=1, num_key_value_heads=1, **sizes)


def load(folder, kind, double, compute_dtype="float32"):
    plugins = Plugins({"student.load": {"it": kind(use_double_quant=double, compute_dtype=compute_dtype)}})
    return load_model(
        locate(str(folder)), plugins=plugins, role="student", section="student.load",
        dtype=torch.float32, device="cpu", attn_implementation=None,
    )  # fmt: skip


def layers(model):
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, Linear4bit)}


def scales(state):
    """Return the stored scale of each block; where scales are quantised too, from a table, in groups of 256."""
    if not state.nested:
        return state.absmax.double()
    groups = state.state2.absmax.double().repeat_interleave(256)[: state.absmax.numel()]
    return state.state2.code.double()[state.absmax.long()] * groups + state.offset.double()


def defined(layer, of_blocks=None):
    """Return the weight that a layer stores, by definition; with other scales `of_blocks` if given."""
    state, packed = layer.weight.quant_state, layer.weight.data.flatten().long()
    codes = torch.stack([packed >> 4, packed & 15], dim=1).flatten()
    of_blocks = scales(state) if of_blocks is None else of_blocks
    return (VALUES[state.quant_type][codes] * of_blocks.repeat_interleave(64)[: len(codes)]).view(state.shape)


def off(found, wanted):
    """Return the distance from `wanted` as a share of its norm."""
    return float((found.double() - wanted).detach().norm() / wanted.detach().norm())


@pytest.mark.parametrize(("kind", "double"), KINDS)
def test_each_weight_is_stored_as_the_nearest_value_of_its_block(folder, kind, double):
    plain = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64)
    for name, layer in layers(load(folder, kind, double)).items():
        weight = plain.get_submodule(name).weight.detach()
        padded = torch.nn.functional.pad(weight.flatten(), (0, -weight.numel() % 64)).view(-1, 64)
        largest = padded.abs().amax(1)
        nearest = (padded[..., None] - largest[:, None, None] * VALUES[kind.__name__.lower()]).abs().amin(-1)
        error = (defined(layer, largest) - weight).abs().flatten()
        torch.testing.assert_close(error, nearest.flatten()[: len(error)], rtol=0, atol=1e-6)
        bound = 0.01 * largest.max() if double else 0
        assert (scales(layer.weight.quant_state) - largest).abs().max() <= bound


@pytest.mark.parametrize(("kind", "double"), KINDS)
@pytest.mark.parametrize(("compute_dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02)])
def test_products_and_gradients_are_those_of_the_stored_weight(folder, kind, double, compute_dtype, tolerance):
    for layer in layers(load(folder, kind, double, compute_dtype)).values():
        weight = defined(layer)
        hidden, gradient = torch.randn(5, layer.in_features, requires_grad=True), torch.randn(5, layer.out_features)
        for training in (False, True, False):
            layer.train(training)
            with torch.no_grad():
                assert off(layer(hidden), hidden.double() @ weight.T) < tolerance
            outputs = layer(hidden)
            assert off(outputs, hidden.double() @ weight.T) < tolerance
            (found,) = torch.autograd.grad(outputs, hidden, gradient)
            assert off(found, gradient.double() @ weight) < tolerance


@pytest.mark.parametrize(("kind", "double"), KINDS)
def test_a_merge_and_a_dequantised_copy_start_from_the_stored_weight(folder, kind, double):
    torch.manual_seed(5)
    config = LoraConfig(r=2, lora_alpha=1, target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(load(folder, kind, double), config)
    wanted = {
        name.removeprefix("base_model.model."): defined(layer.base_layer) + layer.get_delta_weight("default").double()
        for name, layer in adapted.named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    merged = adapted.merge_and_unload()
    stored = {name: defined(layer) for name, layer in layers(merged).items()}
    for name, weight in wanted.items():
        assert off(stored[name], weight) < 0.15  # rounded again, by 0.09 in nf4 and 0.12 in fp4
    dequantised = merged.dequantize(torch.float32)
    for name, weight in stored.items():
        assert off(dequantised.get_submodule(name).weight, weight) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_dequantised_in_each_type(folder, dtype):
    for layer in layers(load(folder, NF4, double=False)).values():
        state = layer.weight.quant_state
        found = torch.ops.bitsandbytes.dequantize_4bit(layer.weight, state.absmax, 64, "nf4", state.shape, dtype)
        assert off(found, defined(layer)) < 0.01
