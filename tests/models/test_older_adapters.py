"""Adapters of transformers 4, whose files name each expert apart, load as in plain peft, into teacher and student."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from neoplug.errors import RecipeError
from neoplug.models.load import meta_model
from neoplug.models.stored_adapter import (
    load_adapter,
    load_adapter_weights,
    locate_adapter,
    validate_adapter_fits,
    validate_same_adapter,
)
from neoplug.testing.families import configuration
from neoplug_adapters.lora import LoRA

pytestmark = [  # raised within peft
    pytest.mark.filterwarnings("ignore:.*removed in v6:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*_pattern keys did not match:RuntimeWarning"),
]
R, ALPHA, EXPERTS, HIDDEN, INNER = 3, 6, 4, 32, 24
PROJECTIONS = {"gate_proj": (HIDDEN, INNER), "up_proj": (HIDDEN, INNER), "down_proj": (INNER, HIDDEN)}
IDS = torch.arange(20, 40)[None]


def build():
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(configuration("qwen3_moe"), dtype=torch.float32)
    return model.eval().requires_grad_(False)


@pytest.fixture
def older(tmp_path):
    """Return the folder of an adapter on all experts, and its matrices (layer, expert, projection) -> (A, B)."""
    torch.manual_seed(2)
    matrices = {
        (layer, expert, name): (0.3 * torch.randn(R, inputs), 0.3 * torch.randn(outputs, R))
        for layer in range(2) for expert in range(EXPERTS) for name, (inputs, outputs) in PROJECTIONS.items()
    }  # fmt: skip
    tensors = {}
    for (layer, expert, name), (down, up) in matrices.items():
        prefix = f"base_model.model.model.layers.{layer}.mlp.experts.{expert}.{name}"
        tensors |= {f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up}
    LoraConfig(
        r=R, lora_alpha=ALPHA, target_modules=list(PROJECTIONS), task_type="CAUSAL_LM"
    ).save_pretrained(tmp_path)  # fmt: skip
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    return tmp_path, matrices


def merged(matrices):
    """Return the logits of the base with W + scale B A for each expert, by definition."""
    model = build()
    for (layer, expert, name), (down, up) in matrices.items():
        experts, change = model.model.layers[layer].mlp.experts, ALPHA / R * up @ down
        if name == "down_proj":
            experts.down_proj[expert] += change
        else:
            half = slice(0, INNER) if name == "gate_proj" else slice(INNER, None)
            experts.gate_up_proj[expert, half] += change
    with torch.no_grad():
        return model(IDS).logits


def test_a_teacher_loads_it(older):
    folder, matrices = older
    stored = locate_adapter(str(folder))
    validate_adapter_fits(meta_model(configuration("qwen3_moe")), stored)
    with torch.no_grad():
        torch.testing.assert_close(load_adapter(build(), stored)(IDS).logits, merged(matrices), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("targets", [list(PROJECTIONS), ["experts"]])
def test_a_student_continues_from_it(older, targets):
    folder, matrices = older
    stored, plugin = locate_adapter(str(folder)), LoRA(r=R, lora_alpha=ALPHA, target_modules=targets)
    validate_same_adapter(plugin.add_adapter(meta_model(configuration("qwen3_moe")), None, 1, rng()), stored, "lora")
    model = plugin.add_adapter(build(), None, 1, rng())
    load_adapter_weights(model, stored, "lora")
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, merged(matrices), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{"lora_alpha": ALPHA + 1}, {"r": R + 1}, {"target_modules": ["q_proj"]}])
def test_another_configuration_is_refused(older, options):
    plugin = LoRA(**{"r": R, "lora_alpha": ALPHA, "target_modules": ["experts"]} | options)
    model = plugin.add_adapter(meta_model(configuration("qwen3_moe")), None, 1, rng())
    with pytest.raises(RecipeError, match=r"was made with|does not fit"):
        validate_same_adapter(model, locate_adapter(str(older[0])), "lora")


def test_an_incomplete_one_is_refused(older):
    folder, _ = older
    stored = locate_adapter(str(folder))
    save_file({k: v for k, v in stored.weights.items() if "experts.2" not in k}, folder / "adapter_model.safetensors")
    with pytest.raises(RecipeError, match="does not fit"):
        validate_adapter_fits(meta_model(configuration("qwen3_moe")), stored)


def test_a_file_of_this_transformers_is_loaded_too(tmp_path):
    model = get_peft_model(build(), LoraConfig(target_modules=["experts.gate_proj", "experts.up_proj", "q_proj"]))
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data.normal_(std=0.1)
    with torch.no_grad():
        expected = model(IDS).logits
    model.save_pretrained(tmp_path)
    stored = locate_adapter(str(tmp_path))
    validate_adapter_fits(meta_model(configuration("qwen3_moe")), stored)
    with torch.no_grad():
        torch.testing.assert_close(load_adapter(build(), stored)(IDS).logits, expected)


def rng():
    return torch.Generator().manual_seed(0)
