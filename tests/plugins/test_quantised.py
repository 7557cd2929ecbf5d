"""nf4, fp4 and int8 against the dequantised base in float64; known faults of bitsandbytes on a CPU."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from neoplug.environment.fake_floats import FakeFloats
from neoplug.environment.storage_tracker import tensors_of
from neoplug.errors import RecipeError
from neoplug.models.load import load_model
from neoplug.models.resolve import locate
from neoplug.models.shapes import model_of_shapes
from neoplug.registry import Plugins
from neoplug.testing.families import make
from neoplug_models.fp4 import FP4
from neoplug_models.int8 import Int8
from neoplug_models.nf4 import NF4

# peft calls transformers by old names
pytestmark = pytest.mark.filterwarnings("ignore:.*removed in v6:FutureWarning")
IDS = torch.arange(3, 43).view(2, 20)
# Tolerances are below the precision of bfloat16, in which some processors would compute.
PLUGINS = [NF4(compute_dtype="float32"), FP4(compute_dtype="float32"), Int8()]
everyone = pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: type(plugin).__name__)


def load(folder, plugin, using=load_model, **more):
    options = {"dtype": torch.float32, "device": "cpu", "attn_implementation": None} | more
    plugins = Plugins({"student.load": {"it": plugin}})
    return using(locate(str(folder)), plugins=plugins, role="student", section="student.load", **options)


def layers(model):
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit | Linear8bitLt)}


def weight_of(layer):
    """Return the dequantised weight of a layer in float64: of 4 bits by bitsandbytes, of 8 by definition."""
    from bitsandbytes.functional import dequantize_4bit

    if layer.weight.dtype == torch.int8:
        return layer.weight.double() * layer.state.SCB.double()[:, None] / 127
    return dequantize_4bit(layer.weight.data, layer.weight.quant_state).double()


def dequantised(folder, plugin):
    """Return the plain model in float64 with the dequantised weights of the quantised model."""
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    for name, layer in layers(load(folder, plugin)).items():
        plain.get_submodule(name).weight.data = weight_of(layer)
    return plain.eval()


def with_lora(model, **options):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM", **options)
    return get_peft_model(model, config)


def gradients(model):
    """Return the adapter's gradients after an evaluation, a generation and another training step."""
    for train in (False, True, False, True):
        model.train(train)
        model.zero_grad()
        if train:
            model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        else:
            with torch.no_grad():
                model(input_ids=IDS)
                model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=2, do_sample=False)
    return {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}


@everyone
@pytest.mark.parametrize("use_dora", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["lora", "dora"])
def test_gradients_after_evaluation_equal_those_of_the_dequantised_base(tiny_student, plugin, use_dora):
    models = (load(tiny_student, plugin), dequantised(tiny_student, plugin))
    ours, reference = (gradients(with_lora(model, use_dora=use_dora)) for model in models)
    assert ours.keys() == reference.keys()
    for name, gradient in reference.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(ours[name].double(), gradient, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", [NF4, FP4])
def test_gradients_in_bfloat16_differ_only_by_its_rounding(tiny_student, kind):
    """Also on processors with bfloat16 kernels, where bitsandbytes packs weights after an evaluation."""
    plugin = kind(compute_dtype="bfloat16")
    models = (load(tiny_student, plugin), dequantised(tiny_student, plugin))
    ours, reference = (gradients(with_lora(model)) for model in models)
    for name, gradient in reference.items():
        assert (ours[name].double() - gradient).norm() < 0.1 * gradient.norm(), name


@everyone
@torch.no_grad()
def test_evaluating_and_training_compute_the_same(tiny_student, plugin):
    model, reference = load(tiny_student, plugin), dequantised(tiny_student, plugin)
    expected = reference(input_ids=IDS).logits
    for training in (False, True):
        torch.testing.assert_close(model.train(training)(input_ids=IDS).logits.double(), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_int8_weights_are_at_most_half_a_step_from_the_original(tiny_student):
    plain = AutoModelForCausalLM.from_pretrained(tiny_student, dtype=torch.float64)
    for name, layer in layers(load(tiny_student, Int8())).items():
        weight = plain.get_submodule(name).weight
        step = weight.abs().amax(1, keepdim=True) / 127
        assert ((weight_of(layer) - weight).abs() <= step * 0.6).all()  # bitsandbytes rounds by float16


def test_int8_documents_of_a_batch_do_not_influence_each_other(tiny_student):
    """In LLM.int8() they do, by outlier columns, which it detects in the whole batch."""
    model = load(tiny_student, Int8())
    for layer in model.model.layers:
        layer.input_layernorm.weight.data *= 5  # outliers
    beside = [torch.stack([torch.full((9,), first), torch.arange(40, 49)]) for first in (7, 11)]
    with torch.no_grad():
        one, other = (model(input_ids=ids).logits[1] for ids in beside)
    assert torch.equal(one, other)


def test_the_packing_that_cuts_gradients_is_off(tiny_student):
    found = layers(load(tiny_student, NF4()))
    assert len(found) == 2 * 7
    assert not any(layer.support_avx512bf16_for_cpu for layer in found.values())


@everyone
def test_linear_layers_are_quantised_and_embeddings_and_head_are_not(tiny_teacher, plugin):
    model = load(tiny_teacher, plugin, dtype=torch.bfloat16)
    assert len(layers(model)) == 4 * 7
    assert {layer.weight.dtype for layer in layers(model).values()} <= {torch.uint8, torch.int8}
    for part in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert type(part).__module__.startswith("torch.")
        assert part.weight.dtype == torch.bfloat16
    assert not any(weight.requires_grad for weight in model.parameters())
    assert not model.training


@pytest.mark.parametrize("kind", [NF4, FP4, Int8])
def test_skipped_modules_and_the_head_are_not_quantised(tiny_teacher, kind):
    model = load(tiny_teacher, kind(skip_modules=["k_proj", "model.layers.1"]))
    assert len(layers(model)) == 3 * 6
    assert type(model.lm_head) is torch.nn.Linear
    with pytest.raises(RecipeError, match="no module is called `k_porj`; did you mean `k_proj`") as caught:
        load(tiny_teacher, kind(skip_modules=["k_porj"]))
    assert caught.value.problems[0].path == ("student", "load", kind.__name__.lower(), "skip_modules")
    with pytest.raises(RecipeError, match=r"`mlp` names a module(.|\n)*in it: down_proj, gate_proj, up_proj"):
        load(tiny_teacher, kind(skip_modules=["mlp"]))


@pytest.mark.parametrize("kind", [NF4, FP4])
@pytest.mark.parametrize("double", [True, False])
def test_quant_type_and_double_quant_apply_to_the_weights(tiny_student, kind, double):
    found = layers(load(tiny_student, kind(use_double_quant=double)))
    assert {layer.weight.quant_state.nested for layer in found.values()} == {double}
    assert {layer.weight.quant_state.quant_type for layer in found.values()} == {kind.__name__.lower()}


@pytest.mark.parametrize(("asked", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_compute_dtype_is_the_configured_one(tiny_student, asked, expected):
    found = layers(load(tiny_student, NF4(compute_dtype=asked)))
    assert {layer.compute_dtype for layer in found.values()} == {expected}


@everyone
def test_a_model_without_data_has_tensors_like_those_of_the_loaded_one(tmp_path, plugin):
    """Qwen2 has biases."""
    folder = make("qwen2", tmp_path)
    loaded = load(folder, plugin)
    with FakeFloats():
        shapes = load(folder, plugin, using=model_of_shapes)
    kinds = [sorted((tuple(t.shape), str(t.dtype)) for t in tensors_of(model)) for model in (loaded, shapes)]
    assert kinds[0] == kinds[1]
    assert any("int8" in kind for _, kind in kinds[0])
