"""A teacher's adapter that cannot be loaded is refused by a plan, with its line in the recipe."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from neoplug.errors import RecipeError
from neoplug.recipe import load
from neoplug.runs.plan import plan

pytestmark = pytest.mark.filterwarnings("ignore:.*removed in v6:FutureWarning")  # raised within peft


@pytest.fixture
def adapter(tmp_path, tiny_teacher):
    model = AutoModelForCausalLM.from_pretrained(tiny_teacher)
    get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(
        folder := tmp_path / "adapter"
    )
    return folder


def refuse(recipe):
    checked = load(recipe)
    with checked.marking():
        plan(checked, quick=True)


def test_of_an_unconverted_start_on_a_quantised_teacher(lab, adapter):
    pytest.importorskip("bitsandbytes")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": "pissa"}))
    recipe = lab.recipe(teacher={"adapter_path": str(adapter), "load": {"nf4": {}}})
    with pytest.raises(RecipeError, match=r"recipe.yaml:\d+:\d+: the adapter .* cannot be loaded into a quantised"):
        refuse(recipe)


def test_of_resized_embeddings(lab, adapter):
    weights = load_file(adapter / "adapter_model.safetensors")
    weights["base_model.model.lm_head.weight"] = torch.zeros(500, 64)
    save_file(weights, adapter / "adapter_model.safetensors")
    recipe = lab.recipe(teacher={"adapter_path": str(adapter)})
    with pytest.raises(RecipeError, match=r"recipe.yaml:\d+:\d+: the adapter .*lm_head.weight of shape \[500, 64\]"):
        refuse(recipe)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": ["no_such_layer"]},
        {"target_modules": 3},
        {"r": 0},
        {"r": "four"},
        {"peft_type": "IA3"},
        {"peft_type": "NONE"},
        {"layer_replication": [[0, 99]]},
        {"rank_pattern": {"q_proj": -1}},
        {"init_lora_weights": "nonsense"},
    ],
    ids=str,
)
def test_of_a_configuration_that_peft_refuses(lab, adapter, changes):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | changes))
    with pytest.raises(RecipeError, match=r"recipe.yaml:\d+:\d+: the adapter `.*/adapter` ") as refused:
        refuse(lab.recipe(teacher={"adapter_path": str(adapter)}))
    assert "why: " in str(refused.value) or "weights differ" in str(refused.value)


@pytest.mark.parametrize("content", ["", "null", "[]", "[" * 100_000, '{"peft_type": ["LORA"]}', "\x00"])
def test_of_a_configuration_that_is_none(lab, adapter, content):
    (adapter / "adapter_config.json").write_text(content)
    with pytest.raises(RecipeError, match=r"recipe.yaml:\d+:\d+: the adapter `.*/adapter` has no adapter_config.json"):
        refuse(lab.recipe(teacher={"adapter_path": str(adapter)}))
