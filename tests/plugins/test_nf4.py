"""NF4 against the base that it stands for, dequantised by bitsandbytes itself; the trap of its packed CPU layers."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from neoplug.models import load_model, locate
from neoplug.registry import Plugins
from neoplug_models.nf4 import NF4

# peft calls transformers by old names
pytestmark = pytest.mark.filterwarnings("ignore:.*removed in v6:FutureWarning")
IDS = torch.arange(3, 43).view(2, 20)


def load(folder, *, plugin=None, **more):
    plugins = Plugins({"student.load": {"nf4": plugin or NF4()}})
    options = {"dtype": torch.float32, "device": "cpu", "attn_implementation": None} | more
    return load_model(locate(str(folder)), plugins=plugins, role="student", section="student.load", **options)


def layers(model):
    from bitsandbytes.nn import Linear4bit

    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}


def dequantised(folder):
    """Return the plain model with the very weights that the 4-bit model stands for."""
    from bitsandbytes.functional import dequantize_4bit

    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, layer in layers(load(folder)).items():
        plain.get_submodule(name).weight.data = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return plain.eval()


def with_lora(model):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def gradients(model):
    """Return LoRA's gradients after an evaluation, a generation and another training step came before."""
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


def test_gradients_after_evaluation_equal_those_of_the_dequantised_base(tiny_student):
    ours, reference = (gradients(with_lora(model)) for model in (load(tiny_student), dequantised(tiny_student)))
    assert ours.keys() == reference.keys()
    for name, gradient in reference.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_the_packing_that_cuts_gradients_is_off(tiny_student):
    found = layers(load(tiny_student))
    assert len(found) == 2 * 7
    assert not any(layer.support_avx512bf16_for_cpu for layer in found.values())


def test_what_is_quantised_and_what_is_not(tiny_teacher):
    model = load(tiny_teacher, dtype=torch.bfloat16)
    assert all(layer.weight.dtype == torch.uint8 for layer in layers(model).values())
    for part in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert type(part).__module__.startswith("torch.")
        assert part.weight.dtype == torch.bfloat16
    assert not any(weight.requires_grad for weight in model.parameters())
    assert not model.training


@pytest.mark.parametrize("double", [True, False])
def test_double_quant_reaches_the_weights(tiny_student, double):
    found = layers(load(tiny_student, plugin=NF4(use_double_quant=double)))
    assert {layer.weight.quant_state.nested for layer in found.values()} == {double}
    assert {layer.weight.quant_state.quant_type for layer in found.values()} == {"nf4"}


@pytest.mark.parametrize(("asked", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_compute_dtype_is_what_was_asked_for(tiny_student, asked, expected):
    found = layers(load(tiny_student, plugin=NF4(compute_dtype=asked)))
    assert {layer.compute_dtype for layer in found.values()} == {expected}
