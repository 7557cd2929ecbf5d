"""Depth pruning against a forward through the kept layers only, on several families; importance; the meta device."""

import copy

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr
from transformers import AutoConfig, AutoModelForCausalLM

from neoplug.data.batch import Document, collate
from neoplug.errors import RecipeError
from neoplug.models.load import meta_model
from neoplug_models.layer_importance import block_influence
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
def test_even_importance_keeps_evenly_spaced_layers_with_first_and_last(count):
    model = build("llama")
    before = list(model.model.layers)
    PruneDepth(num_hidden_layers=count).prepare_student(model, None)
    chosen = [before.index(layer) for layer in model.model.layers]
    ideal = torch.linspace(0, 5, count, dtype=torch.float64)
    assert len(set(chosen)) == count
    assert chosen[0] == 0
    assert chosen[-1] == 5
    assert (torch.tensor(chosen) - ideal).abs().max() <= 0.5


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "gpt_neox", "qwen3"])
def test_the_pruned_model_runs_only_the_kept_layers(family):
    """Reference: the whole model with the removed layers replaced by the identity on the residual stream."""
    more = {"head_dim": 8} if family == "qwen3" else {}
    model, whole = build(family, **more), build(family, **more)
    PruneDepth(layers=[0, 2, 5]).prepare_student(model, None)
    for number, layer in enumerate(_layers(whole)):
        if number in (1, 3, 4):
            layer.forward = lambda hidden, *args, **kwargs: hidden
    torch.testing.assert_close(logits(model), logits(whole))
    assert model.config.num_hidden_layers == 3


def _layers(model, count=6):
    return next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count)


def test_the_cache_works_after_pruning():
    """Generation with a cache equals generation without: the layer numbers are contiguous again."""
    model = build("llama")
    PruneDepth(layers=[1, 4]).prepare_student(model, None)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(IDS)}
    cached, plain = (model.generate(IDS, use_cache=use, **options) for use in (True, False))
    assert cached.tolist() == plain.tolist()


@pytest.mark.slow
def test_it_saves_and_loads(tmp_path):
    model = build("gemma3_text", head_dim=8, sliding_window=4)
    types = list(model.config.layer_types)
    PruneDepth(layers=[0, 3, 5]).prepare_student(model, None)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.config.layer_types == [types[n] for n in (0, 3, 5)]
    torch.testing.assert_close(logits(again), logits(model))


def test_an_infinity_in_the_configuration_is_read_back(tmp_path):
    """Falcon-H1's time steps have no upper limit, which transformers writes into JSON in a form of its own."""
    mamba = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
    model = build("falcon_h1", 3, **mamba)
    assert model.config.time_step_limit[1] == float("inf")
    PruneDepth(layers=[0, 2]).prepare_student(model, None)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(again), logits(model))


def test_meta_device_has_the_same_shapes():
    real = build("llama")
    meta = meta_model(real.config)
    for model in (real, meta):
        PruneDepth(num_hidden_layers=4, importance="greedy").prepare_student(model, None)
    shapes = [{name: weight.shape for name, weight in model.named_parameters()} for model in (real, meta)]
    assert shapes[0] == shapes[1]
    assert all(weight.is_meta for weight in meta.parameters())


def test_lists_of_the_configuration_keep_the_entries_of_the_kept_layers():
    model = build("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=3)
    types = list(model.config.layer_types)
    assert len(set(types)) == 2
    PruneDepth(layers=[0, 5]).prepare_student(model, None)
    assert model.config.layer_types == [types[0], types[5]]


def test_layer_types_that_follow_from_the_number_are_refused():
    """The configuration makes every second layer a mixture of experts, so it cannot describe two in a row."""
    model = build("qwen2_moe", num_experts=2, moe_intermediate_size=8, shared_expert_intermediate_size=8,
                  decoder_sparse_step=2)  # fmt: skip
    with pytest.raises(RecipeError, match=r"cannot be cut there: `model\.layers"):
        PruneDepth(layers=[1, 3]).prepare_student(model, None)


TEXT = [np.random.default_rng(seed).integers(1, 64, length) for seed, length in enumerate((9, 14, 5))]


def batches(*groups):
    """Return batches of documents; `groups` has the numbers of the texts in each batch."""
    for group in groups:
        yield collate([Document(TEXT[n], np.ones(len(TEXT[n]), dtype=bool), row=n) for n in group])


def kept(whole, *groups, tokens=28, **options):
    """Return the numbers of the kept layers."""
    model = copy.deepcopy(whole)
    before = list(_layers(model, model.config.num_hidden_layers))
    PruneDepth(**options, calibration_tokens=tokens).prepare_student(model, batches(*groups or [[0, 1, 2]]))
    after = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and m[0] in before)
    return [before.index(layer) for layer in after]


def rough(family, layers=6):
    """Return a model whose layers 1, 3 and 4 matter most."""
    model = build(family, layers, initializer_range=0.3)
    for number, layer in enumerate(_layers(model, layers)):
        for weight in layer.parameters():
            weight.data *= 1.5 if number in (1, 3, 4) else 0.2
    return model


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_block_influence_is_its_definition(family):
    """Reference: transformers' hidden states of a padded batch, in numpy; the last layer's before the last norm."""
    model = rough(family)
    bare = copy.deepcopy(model)
    setattr(bare.base_model, "norm" if family == "llama" else "ln_f", torch.nn.Identity())
    ids, mask = torch.zeros(3, 14, dtype=torch.int64), torch.zeros(3, 14, dtype=torch.int64)
    for row, text in enumerate(TEXT):
        ids[row, : len(text)], mask[row, : len(text)] = torch.tensor(text), 1
    with torch.no_grad():
        states = bare.base_model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    states = np.stack([state[mask.bool()].double().numpy() for state in states])
    states /= np.linalg.norm(states, axis=-1, keepdims=True)
    expected = 1 - (states[1:] * states[:-1]).sum(-1).mean(-1)
    found = block_influence(model, list(_layers(model)), [torch.tensor(text)[None] for text in TEXT])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    least = set(np.argsort(expected)[:3])
    for groups in ([[0, 1, 2]], [[2], [1, 0]]):
        assert kept(model, *groups, num_hidden_layers=3, importance="block_influence") == sorted({*range(6)} - least)


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_greedy_removes_the_layer_with_the_smallest_kl(family):
    """Reference: the forward KL of every possible removal, by scipy in float64."""
    whole = rough(family, layers=4)
    keep = list(range(4))
    while len(keep) > 2:
        cuts = [[other for other in keep if other != layer] for layer in keep]
        keep = min(cuts, key=lambda cut: divergence(whole, cut))
    assert kept(whole, num_hidden_layers=2, importance="greedy") == keep
    assert keep not in ([0, 1], [0, 3], [2, 3])  # neither the first, nor the last, nor evenly


def divergence(whole, keep):
    model, total = copy.deepcopy(whole), 0.0
    PruneDepth(layers=keep).prepare_student(model, None)
    for text in TEXT:
        with torch.no_grad():
            both = [log_softmax(m(input_ids=torch.tensor(text)[None]).logits[0].double(), -1) for m in (whole, model)]
        total += rel_entr(*np.exp(both)).sum()
    return total


def test_calibration_reads_no_more_tokens_than_configured():
    """After 9 + 3 tokens no batch is requested: the third is never drawn."""
    drawn = []

    def watched():
        for batch in batches([0], [1], [2]):
            drawn.append(batch.tokens)
            yield batch

    options = {"num_hidden_layers": 3, "importance": "block_influence", "calibration_tokens": 12}
    PruneDepth(**options).prepare_student(rough("llama"), watched())
    assert drawn == [9, 14]
    cut = [torch.tensor(TEXT[0])[None], torch.tensor(TEXT[1][:3])[None]]
    model = rough("llama")
    least = np.argsort(block_influence(model, list(_layers(model)), cut))[:3]
    assert kept(model, [0], [1], tokens=12, num_hidden_layers=3, importance="block_influence") == sorted(
        {*range(6)} - {*least}
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_hidden_layers": 7}, "only 6 layers"), ({"layers": [0, 6]}, "layers 0 to 5")],
)
def test_layers_that_the_model_does_not_have_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        PruneDepth(**options).prepare_student(build("llama"), None)


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
        {"layers": [0, 1], "importance": "greedy"},
        {"num_hidden_layers": 3, "importance": "block_influence", "calibration_tokens": 1},
        {"num_hidden_layers": 3, "calibration_tokens": 100},
    ],
)
def test_options_are_checked(options):
    with pytest.raises(ValueError, match=r"layers|calibration_tokens"):
        PruneDepth(**options)
