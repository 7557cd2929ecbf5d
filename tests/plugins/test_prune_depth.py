"""Depth pruning against a forward through the kept layers only, on several families; the meta device."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from neoplug.errors import RecipeError
from neoplug.models import skeleton
from neoplug_models.prune_depth import PruneDepth

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 64,
}


def build(family, layers=6, **more):
    config = AutoConfig.for_model(family, **SMALL | {"num_hidden_layers": layers} | more)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


IDS = torch.arange(3, 15)[None]


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_kept_evenly_with_first_and_last(count):
    chosen = PruneDepth(num_hidden_layers=count)._chosen(6)
    ideal = torch.linspace(0, 5, count, dtype=torch.float64)
    assert len(set(chosen)) == count
    assert chosen[0] == 0
    assert chosen[-1] == 5
    assert (torch.tensor(chosen) - ideal).abs().max() <= 0.5


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "gpt_neox", "qwen3"])
def test_the_cut_model_runs_the_kept_layers_only(family):
    """Reference: the whole model with the layers in between replaced by the identity, through the residual stream."""
    more = {"head_dim": 8} if family == "qwen3" else {}
    model, whole = build(family, **more), build(family, **more)
    PruneDepth(layers=[0, 2, 5]).prepare_student(model)
    for number, layer in enumerate(_layers(whole)):
        if number in (1, 3, 4):
            layer.forward = lambda hidden, *args, **kwargs: hidden
    torch.testing.assert_close(logits(model), logits(whole))
    assert model.config.num_hidden_layers == 3


def _layers(model):
    return next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 6)


def test_the_cache_works_after_the_cut():
    """Generation with a cache equals generation without: layer numbers in the cache are contiguous again."""
    model = build("llama")
    PruneDepth(layers=[1, 4]).prepare_student(model)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(IDS)}
    cached, plain = (model.generate(IDS, use_cache=use, **options) for use in (True, False))
    assert cached.tolist() == plain.tolist()


def test_it_saves_and_loads(tmp_path):
    model = build("gemma3_text", head_dim=8, sliding_window=4)
    types = list(model.config.layer_types)
    PruneDepth(layers=[0, 3, 5]).prepare_student(model)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.config.layer_types == [types[n] for n in (0, 3, 5)]
    torch.testing.assert_close(logits(again), logits(model))


def test_meta_device_has_the_same_shapes():
    real = build("llama")
    meta = skeleton(real.config)
    for model in (real, meta):
        PruneDepth(num_hidden_layers=4).prepare_student(model)
    shapes = [{name: weight.shape for name, weight in model.named_parameters()} for model in (real, meta)]
    assert shapes[0] == shapes[1]
    assert all(weight.is_meta for weight in meta.parameters())


def test_the_models_own_configuration_is_the_one_cut():
    """A configuration shared with another model must not be cut twice; the plugin cuts the model it is given."""
    model = build("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=3)
    types = list(model.config.layer_types)
    assert len(set(types)) == 2
    PruneDepth(layers=[0, 5]).prepare_student(model)
    assert model.config.layer_types == [types[0], types[5]]


def test_a_pattern_by_number_is_refused():
    """Every second layer is a mixture of experts, by a rule: two in a row cannot be said in a configuration."""
    model = build("qwen2_moe", num_experts=2, moe_intermediate_size=8, shared_expert_intermediate_size=8,
                  decoder_sparse_step=2)  # fmt: skip
    with pytest.raises(RecipeError, match=r"cannot be cut there: `model\.layers"):
        PruneDepth(layers=[1, 3]).prepare_student(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_hidden_layers": 7}, "only 6 layers"), ({"layers": [0, 6]}, "layers 0 to 5")],
)
def test_beyond_the_model_is_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        PruneDepth(**options).prepare_student(build("llama"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_hidden_layers": 3, "layers": [0]},
        {"num_hidden_layers": 1},
        {"layers": []},
        {"layers": [2, 1]},
        {"layers": [1, 1]},
        {"layers": [-1, 2]},
    ],
)
def test_options_are_checked(options):
    with pytest.raises(ValueError, match=r"layers"):
        PruneDepth(**options)
