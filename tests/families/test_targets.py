"""The modules that all-linear selects in families with further kinds of layers, on the meta device."""

import logging

import pytest
import torch
from transformers import AutoConfig

from neoplug.errors import RecipeError
from neoplug.models.load import meta_model
from neoplug.testing.families import USUAL, configuration
from neoplug_adapters.dora import DoRA
from neoplug_adapters.lora import LoRA

# raised within peft
pytestmark = pytest.mark.filterwarnings("ignore:.*removed in v6:FutureWarning")


def adapted(plugin, config):
    """Return the names of the modules that have adapter matrices."""
    model = plugin.add_adapter(meta_model(config), None, 1, torch.Generator().manual_seed(0))
    return {name.partition(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}


@pytest.mark.parametrize("exclude", [None, ["q_proj"], r".*\.q_proj"])
def test_layers_that_a_mamba_mixer_does_not_call_are_left_out(exclude, caplog):
    with caplog.at_level(logging.INFO, logger="neoplug"):
        names = adapted(LoRA(exclude_modules=exclude), configuration("falcon_h1"))
    assert "all-linear leaves out mamba.out_proj" in caplog.text
    assert any(name.endswith("mamba.in_proj") for name in names)
    assert not any(name.endswith("mamba.out_proj") for name in names)
    assert any(name.endswith("q_proj") for name in names) == (exclude is None)


def test_experts_are_adapted_where_peft_supports_them(caplog):
    with caplog.at_level(logging.INFO, logger="neoplug"):
        names = adapted(LoRA(), configuration("mixtral"))
    assert any("experts" in name for name in names)
    assert "experts" not in caplog.text


def test_experts_that_are_not_adapted_are_logged(caplog):
    config = AutoConfig.for_model("granitemoe", **USUAL, vocab_size=259, num_local_experts=4, num_experts_per_tok=2)
    with caplog.at_level(logging.INFO, logger="neoplug"):
        adapted(LoRA(), config)
    weights = config.num_hidden_layers * 4 * 3 * config.hidden_size * config.intermediate_size
    assert f"lora does not adapt {weights} weights of experts" in caplog.text


def test_dora_on_experts_is_refused():
    with pytest.raises(RecipeError, match=r"cannot adapt the experts(.|\n)*name the layers to adapt"):
        adapted(DoRA(), configuration("mixtral"))
    names = adapted(DoRA(target_modules=["q_proj", "v_proj"]), configuration("mixtral"))
    assert {name.rpartition(".")[2] for name in names} == {"q_proj", "v_proj"}


def test_layers_that_linear_attention_calls_are_adapted():
    delta = {
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    }
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "vocab_size": 259}
    kinds = {"layer_types": ["linear_attention", "full_attention"]}
    config = AutoConfig.for_model("qwen3_next", **USUAL | delta | experts | kinds)
    assert any(name.endswith("linear_attn.out_proj") for name in adapted(LoRA(), config))
