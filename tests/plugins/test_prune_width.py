"""Width pruning: exact where removed parts are 0, keeps the most important (by numpy), refuses unknown structures."""

import copy

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from neoplug.data.batch import Document, collate
from neoplug.errors import RecipeError
from neoplug.models.load import meta_model
from neoplug_models.prune_depth import PruneDepth
from neoplug_models.prune_width import PruneWidth

SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64,
    "num_hidden_layers": 2, "head_dim": 8, "initializer_range": 0.3, "pad_token_id": 0,
}  # fmt: skip
IDS = torch.arange(3, 15)[None]
TEXT = [np.random.default_rng(seed).integers(0, 64, length) for seed, length in enumerate((9, 14, 5))]


def build(family, **more):
    config = AutoConfig.for_model(family, **SMALL | more)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def batches(*groups):
    """Return batches of documents; `groups` has the numbers of the texts in each batch; without it one batch of all."""
    for group in groups or [range(len(TEXT))]:
        yield collate([Document(TEXT[n], np.ones(len(TEXT[n]), dtype=bool), row=n) for n in group])


def prune(model, *groups, **sizes):
    PruneWidth(**sizes, calibration_tokens=28).prepare_student(model, batches(*groups))
    return model


def logits(model):
    return model(input_ids=IDS).logits


def set_to_zero(linear, rows):
    linear.weight.data[rows] = 0
    if linear.bias is not None:
        linear.bias.data[rows] = 0


def zero_channels(model):
    for number, layer in enumerate(model.model.layers):
        set_to_zero(layer.mlp.up_proj, range(number, 48, 3))


def zero_group(model):
    """Set the values of a key-value head to 0, so that its two query heads return 0."""
    for number, layer in enumerate(model.model.layers):
        head = number % 2
        set_to_zero(layer.self_attn.v_proj, range(8 * head, 8 * head + 8))


def zero_hidden(model):
    dead = range(1, 32, 4)
    model.model.embed_tokens.weight.data[:, dead] = 0
    for layer in model.model.layers:
        set_to_zero(layer.self_attn.o_proj, dead)
        set_to_zero(layer.mlp.down_proj, dead)


DEAD = {
    "intermediate_size": (32, zero_channels),
    "num_key_value_heads": (1, zero_group),
    "hidden_size": (24, zero_hidden),
}
FAMILIES = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"tie_word_embeddings": True},
    "qwen2": {},
    "qwen3": {"tie_word_embeddings": True},
    "granite": {"logits_scaling": 4.0, "residual_multiplier": 0.5},
    "smollm3": {},
}


@pytest.mark.parametrize(
    ("family", "sizes"), [*(("llama", (name,)) for name in DEAD), *((family, tuple(DEAD)) for family in FAMILIES)]
)
def test_removing_what_is_always_zero_does_not_change_the_logits(family, sizes, tmp_path):
    model = build(family, **FAMILIES[family])
    for name in sizes:
        DEAD[name][1](model)
    whole = copy.deepcopy(model)
    prune(model, **{name: DEAD[name][0] for name in sizes})
    torch.testing.assert_close(logits(model), logits(whole), atol=1e-4, rtol=1e-4)
    assert model.num_parameters() < whole.num_parameters()
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), logits(model))
    assert {name: getattr(again.config, name) for name in sizes} == {name: DEAD[name][0] for name in sizes}
    assert again.config.head_dim == 8


def test_query_heads_that_return_zero_are_removed():
    """Each query head has its own key-value head, so a single query head can return 0."""
    model = build("llama", num_key_value_heads=4)
    for number, layer in enumerate(model.model.layers):
        set_to_zero(layer.self_attn.v_proj, range(8 * number, 8 * number + 8))
    whole = copy.deepcopy(model)
    prune(model, num_attention_heads=2, num_key_value_heads=2)
    assert model.config.num_key_value_heads == 2
    assert not torch.allclose(logits(model), logits(whole), atol=1e-2)
    again = copy.deepcopy(whole)
    PruneWidth(num_attention_heads=2, calibration_tokens=28).prepare_student(again, batches())
    assert torch.equal(logits(again), logits(model))  # by default as many key-value heads as query heads


HEADS = (0, 8, 16, 24)  # where the heads of dimension 8 begin


class Reference:
    """A decoder in numpy and float64 whose queries are 0, so attention is a mean; it records what each part adds."""

    def __init__(self, model):
        self.weights = {name: weight.double().numpy() for name, weight in model.state_dict().items()}
        self.seen = {}

    def norm(self, hidden, name):
        found = hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + 1e-6) * self.weights[f"{name}.weight"]
        self.note("hidden", name, np.abs(found))
        return found

    def note(self, part, name, values):
        self.seen.setdefault((part, name), []).append(values.mean(0))

    def read(self, ids):
        w, hidden = self.weights, self.weights["model.embed_tokens.weight"][ids]
        for layer in ("model.layers.0", "model.layers.1"):
            values = self.norm(hidden, f"{layer}.input_layernorm") @ w[f"{layer}.self_attn.v_proj.weight"].T
            seen = (
                np.cumsum(values, 0) / np.arange(1, len(ids) + 1)[:, None]
            )  # queries of 0 attend equally to all positions
            added = np.stack(
                [seen[:, h : h + 8] @ w[f"{layer}.self_attn.o_proj.weight"][:, h : h + 8].T for h in HEADS], 1
            )
            self.note("head", layer, np.linalg.norm(added, axis=-1))
            hidden = hidden + added.sum(1)
            inner = self.norm(hidden, f"{layer}.post_attention_layernorm")
            gate = inner @ w[f"{layer}.mlp.gate_proj.weight"].T
            channels = gate / (1 + np.exp(-gate)) * (inner @ w[f"{layer}.mlp.up_proj.weight"].T)
            self.note("channel", layer, np.abs(channels) * np.linalg.norm(w[f"{layer}.mlp.down_proj.weight"], axis=0))
            hidden = hidden + channels @ w[f"{layer}.mlp.down_proj.weight"].T
        self.norm(hidden, "model.norm")

    def most(self, part, count, *names):
        """Return the most important indices: L2 norm over documents of means over tokens, summed over `names`."""
        scores = sum(np.sqrt((np.stack(self.seen[part, name]) ** 2).sum(0)) for name in names)
        return np.sort(np.argsort(-scores)[:count])


def test_the_most_important_parts_are_kept():
    model = build("llama", num_key_value_heads=4, rms_norm_eps=1e-6)
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data.zero_()
    reference = Reference(model)
    for ids in TEXT:
        reference.read(ids)
    whole, found = copy.deepcopy(model), prune(model, num_attention_heads=2, intermediate_size=20, hidden_size=24)
    norms = [name for part, name in reference.seen if part == "hidden"]
    hidden = reference.most("hidden", 24, *norms)
    assert len(norms) == 5
    embeddings = whole.model.embed_tokens.weight[:, hidden]
    assert torch.equal(found.model.embed_tokens.weight, embeddings)
    for number, (layer, before) in enumerate(zip(found.model.layers, whole.model.layers, strict=True)):
        channels = reference.most("channel", 20, f"model.layers.{number}")
        heads = reference.most("head", 2, f"model.layers.{number}")
        rows = (heads[:, None] * 8 + np.arange(8)).ravel()
        assert torch.equal(layer.mlp.gate_proj.weight, before.mlp.gate_proj.weight[channels][:, hidden])
        assert torch.equal(layer.mlp.down_proj.weight, before.mlp.down_proj.weight[hidden][:, channels])
        assert torch.equal(layer.self_attn.k_proj.weight, before.self_attn.k_proj.weight[rows][:, hidden])
        assert torch.equal(layer.self_attn.v_proj.weight, before.self_attn.v_proj.weight[rows][:, hidden])
    torch.testing.assert_close(found.model.norm.weight, torch.full((24,), (32 / 24) ** 0.5))


def test_groups_keep_the_same_number_of_heads():
    from neoplug_models.width_importance import heads_to_keep

    scores = torch.tensor([5.0, 1, 3, 1, 9, 1, 1, 2, 4, 3, 4, 3])  # three groups of four
    heads, groups = heads_to_keep(scores, 3, 4, 2)
    assert heads.tolist() == [0, 2, 4, 7]  # 5 + 3 and 9 + 2 before 4 + 4
    assert groups.tolist() == [0, 1]


def test_importance_does_not_depend_on_the_batches_of_documents():
    """Neither padding nor other documents of the batch influence what is measured."""
    together, apart = (prune(build("qwen3"), *groups, intermediate_size=24) for groups in ([[0, 1, 2]], [[0], [1, 2]]))
    assert all(torch.equal(a, b) for a, b in zip(together.parameters(), apart.parameters(), strict=True))


def test_depth_and_width_together_and_a_cache(tmp_path):
    model = build("qwen3", num_hidden_layers=3)
    PruneDepth(num_hidden_layers=2, importance="block_influence").prepare_student(model, batches())
    prune(model, num_key_value_heads=1, intermediate_size=40)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), logits(model))
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(IDS)}
    cached, plain = (again.generate(IDS, use_cache=use, **options) for use in (True, False))
    assert cached.tolist() == plain.tolist()


def test_the_meta_device_has_the_same_shapes():
    real = build("qwen2", tie_word_embeddings=True)
    meta = meta_model(real.config)
    sizes = {"num_attention_heads": 2, "intermediate_size": 40, "hidden_size": 24}
    PruneWidth(**sizes).prepare_student(meta, None)
    prune(real, **sizes)
    shapes = [{name: weight.shape for name, weight in model.named_parameters()} for model in (real, meta)]
    assert shapes[0] == shapes[1]
    assert all(weight.is_meta for weight in meta.parameters())


OLMO = {"rms_norm_eps": 1e-6}
MIXTRAL = {"num_local_experts": 2}


@pytest.mark.parametrize(
    ("family", "more", "sizes"),
    [
        ("olmo2", OLMO, {"intermediate_size": 24}),
        ("mixtral", MIXTRAL, {"num_key_value_heads": 1}),
        ("gemma3_text", {}, {"intermediate_size": 24, "num_key_value_heads": 1}),
        ("cohere", {}, {"intermediate_size": 24}),
    ],
)
def test_partly_supported_families_are_pruned_in_the_supported_dimensions(family, more, sizes, tmp_path):
    model = prune(build(family, **more), **sizes)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval()), logits(model))


@pytest.mark.parametrize(
    ("family", "more", "sizes", "why"),
    [
        (
            "gpt2",
            {"bos_token_id": 1, "eos_token_id": 1},
            {"intermediate_size": 24},
            "nothing in it is known to have 48",
        ),
        ("phi3", {"eos_token_id": 1}, {"intermediate_size": 24}, "gate_up_proj"),
        ("olmo2", OLMO, {"num_attention_heads": 2, "num_key_value_heads": 1}, "k_norm"),
        ("mixtral", MIXTRAL, {"intermediate_size": 24}, "experts"),
        ("gemma3_text", {}, {"hidden_size": 24}, "embed_scale"),
        ("cohere", {}, {"hidden_size": 24}, "LayerNorm"),
        ("llama", {}, {"hidden_size": 30}, "not a multiple"),
    ],
)
def test_unknown_structures_are_refused_before_weights(family, more, sizes, why):
    config = AutoConfig.for_model(family, **SMALL | more)
    with pytest.raises(RecipeError, match=rf"cannot be pruned in this way\nwhy: [\s\S]*{why}[\s\S]*\nfix: "):
        PruneWidth(**sizes).prepare_student(meta_model(config), None)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"intermediate_size": 48}, "intermediate_size is 48, but the model has 48"),
        ({"hidden_size": 33, "intermediate_size": 50}, r"(?s)intermediate_size is 50.*hidden_size is 33"),
        ({"num_attention_heads": 3}, "3 query heads cannot be divided among 2 key-value heads"),
        ({"num_attention_heads": 3, "num_key_value_heads": 1}, "3 query heads cannot be divided among 1 key-value"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(RecipeError, match=message):
        PruneWidth(**sizes).prepare_student(meta_model(AutoConfig.for_model("llama", **SMALL)), None)


@pytest.mark.parametrize("options", [{}, {"hidden_size": 0}, {"intermediate_size": 8, "calibration_tokens": 0}])
def test_options_are_checked(options):
    with pytest.raises(ValueError, match=r"^give at least one of|must be at least 1"):
        PruneWidth(**options)
