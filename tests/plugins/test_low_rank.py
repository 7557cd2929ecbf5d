"""LoRA and DoRA: number of parameters by formula, targets, refusals, and that DoRA differs from LoRA."""

import copy
from types import SimpleNamespace

import pytest
import torch

from neoplug.errors import RecipeError
from neoplug_adapters.dora import DoRA
from neoplug_adapters.full import Full
from neoplug_adapters.lora import LoRA

LAYERS, HIDDEN, INNER = 2, 48, 96
LINEAR = [(HIDDEN, HIDDEN)] * 2 + [(HIDDEN, HIDDEN // 2)] * 2 + [(HIDDEN, INNER)] * 2 + [(INNER, HIDDEN)]  # in, out


@pytest.fixture(scope="module")
def base(tiny_student):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_student, dtype=torch.float32).eval().requires_grad_(False)


def adapted(adapter, base):
    return adapter.add_adapter(copy.deepcopy(base), None, 1, torch.Generator().manual_seed(0))


def trainable(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def size(model):
    return sum(parameter.numel() for parameter in trainable(model).values())


@pytest.mark.parametrize("r", [1, 5, 8])
def test_lora_has_r_times_in_plus_out_parameters(base, r):
    assert size(adapted(LoRA(r=r), base)) == LAYERS * sum(r * (i + o) for i, o in LINEAR)


@pytest.mark.parametrize("adapter", [LoRA, DoRA])
def test_an_adapter_on_the_meta_device_takes_no_memory(base, adapter):
    model = adapted(adapter(r=10**9), copy.deepcopy(base).to("meta"))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert size(model) > 10**12


def test_dora_has_one_more_parameter_for_each_output_row(base):
    assert size(adapted(DoRA(r=4), base)) == LAYERS * sum(4 * (i + o) + o for i, o in LINEAR)


def test_the_head_is_not_a_target(base):
    assert not any("lm_head" in name or "embed" in name for name in trainable(adapted(LoRA(), base)))


def test_names_layers_and_patterns_select_the_targets(base):
    options = {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1], "rank_pattern": {"q_proj": 2}}
    found = trainable(adapted(LoRA(**options), base))
    assert {name.split("layers.")[1].split(".lora")[0] for name in found} == {"1.self_attn.q_proj", "1.mlp.down_proj"}
    assert {parameter.shape[0] for name, parameter in found.items() if "lora_A" in name} == {2, 8}


def test_the_scale_is_alpha_over_r(base):
    """The change of the logits by one adapted layer is linear in the scale, so doubling alpha doubles it."""

    def delta(**options):
        model = adapted(LoRA(target_modules=["layers.1.mlp.down_proj"], **options), base)
        layer = model.get_submodule("base_model.model.model.layers.1.mlp.down_proj")
        torch.nn.init.constant_(layer.lora_B["default"].weight, 0.01)
        states = torch.linspace(-1, 1, INNER)
        return layer(states) - layer.base_layer(states), layer.lora_B["default"].weight @ (
            layer.lora_A["default"].weight @ states
        )

    for options, scale in (
        ({"r": 4, "lora_alpha": 6}, 1.5),
        ({"r": 4, "lora_alpha": 6, "use_rslora": True}, 3.0),
        ({}, 2.0),
        ({"r": 4, "lora_alpha": 4, "alpha_pattern": {"down_proj": 12}}, 3.0),
    ):
        found, product = delta(**options)
        torch.testing.assert_close(found, scale * product, atol=1e-5, rtol=1e-4)


def test_dora_trains_differently_from_lora(base):
    input_ids, logits = torch.arange(24).reshape(2, 12), {}
    for adapter in (LoRA(), DoRA()):
        model = adapted(adapter, base)
        optimizer = torch.optim.SGD(trainable(model).values(), lr=1e-2)
        for _ in range(2):
            model(input_ids=input_ids, labels=input_ids).loss.backward()
            optimizer.step()
        logits[type(adapter)] = model(input_ids=input_ids).logits.detach()
    assert (logits[LoRA] - logits[DoRA]).abs().max() > 1e-3


def test_dora_is_its_formula(base):
    model = adapted(DoRA(r=4, target_modules=["layers.1.mlp.down_proj"]), base)
    layer = model.get_submodule("base_model.model.model.layers.1.mlp.down_proj")
    rng = torch.Generator().manual_seed(0)
    for parameter in trainable(model).values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=rng)
    moved = layer.base_layer.weight + 16 / 4 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    magnitude = layer.lora_magnitude_vector["default"].weight
    weight = magnitude[:, None] * moved / moved.norm(dim=1, keepdim=True)
    states = torch.randn(3, INNER, generator=rng)
    torch.testing.assert_close(layer(states), states @ weight.T, atol=1e-5, rtol=1e-4)


def test_adapters_of_a_bf16_base_are_float32(base):
    for adapter in (LoRA(), DoRA()):
        model = adapter.add_adapter(copy.deepcopy(base).bfloat16(), None, 1, torch.Generator())
        assert {parameter.dtype for parameter in trainable(model).values()} == {torch.float32}


@pytest.mark.parametrize("start", ["gaussian", "orthogonal"])
def test_other_initialisations_leave_the_output_of_the_base(base, start):
    input_ids = torch.arange(24).reshape(2, 12)
    model = adapted(LoRA(init_lora_weights=start), base)
    torch.testing.assert_close(model(input_ids).logits, base(input_ids).logits, atol=1e-3, rtol=0)


def test_gpt2s_transposed_layers_need_no_option():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
    model = LoRA(r=2).add_adapter(GPT2LMHeadModel(config).requires_grad_(False), None, 1, torch.Generator())
    assert size(model) == 2 * sum(i + o for i, o in [(16, 48), (16, 16), (16, 64), (64, 16)])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"r": 0}, r"^r is 0"),
        ({"r": -8}, r"^r is -8"),
        ({"lora_alpha": 0}, r"^lora_alpha is 0"),
        ({"lora_dropout": 1.0}, r"^lora_dropout is 1.0"),
        ({"lora_dropout": float("nan")}, r"^lora_dropout is nan"),
        ({"rank_pattern": {"q_proj": 0}}, r"^rank_pattern is 0"),
        ({"target_modules": []}, r"^target_modules is empty"),
        ({"target_modules": ".*(q_proj"}, r"^target_modules has .* no regular expression"),
        ({"alpha_pattern": {"*": 3}}, r"^alpha_pattern has .* no regular expression"),
        ({"layers_to_transform": 1}, r"^layers_to_transform needs target_modules to be a list"),
        ({"init_lora_weights": False}, r"^init_lora_weights is false"),
        ({"init_lora_weights": "guassian"}, r"^init_lora_weights is guassian"),
        ({"init_lora_weights": "orthogonal", "r": 5}, r"^init_lora_weights is orthogonal.* r is 5"),
        ({"init_lora_weights": "pissa_niter_16"}, r"^init_lora_weights .* plugin `pissa`"),
        ({"init_lora_weights": "olora"}, r"^init_lora_weights .* plugin `olora`"),
        ({"init_lora_weights": "eva"}, r"^init_lora_weights .* plugin `eva`"),
    ],
)
@pytest.mark.parametrize("adapter", [LoRA, DoRA])
def test_wrong_options_are_refused_at_once(adapter, options, words):
    with pytest.raises(ValueError, match=words):
        adapter(**options)


def test_lora_and_dora_name_each_other_where_use_dora_does_not_fit():
    with pytest.raises(ValueError, match=r"^use_dora is true.* plugin `dora`"):
        LoRA(use_dora=True)
    with pytest.raises(ValueError, match=r"^use_dora is false.* plugin `lora`"):
        DoRA(use_dora=False)


@pytest.mark.parametrize(
    ("options", "option", "words"),
    [
        (
            {"target_modules": ["q_proj", "k_prj"]},
            "target_modules",
            "`k_prj` matches no module.* did you mean `k_proj`",
        ),
        (
            {"target_modules": r".*attention\.q"},
            "target_modules",
            "matches no module of the model; its modules are named",
        ),
        ({"target_modules": ["input_layernorm"]}, "target_modules", "is not supported"),
        ({"exclude_modules": "mlp_up"}, "exclude_modules", "`mlp_up` matches no module"),
        ({"exclude_modules": ".*"}, "target_modules", "excluded"),
        ({"modules_to_save": ["lm_haed"]}, "modules_to_save", "did you mean `lm_head`"),
        ({"rank_pattern": {"up_prj": 4}}, "rank_pattern", "did you mean `up_proj`"),
        (
            {"target_modules": ["q_proj"], "layers_to_transform": [0, 2]},
            "layers_to_transform",
            "no layer 2: the model has 2",
        ),
    ],
)
def test_names_that_match_nothing_are_refused(base, options, option, words):
    with pytest.raises(RecipeError, match=words) as caught:
        adapted(DoRA(**options), base)
    assert [problem.path for problem in caught.value.problems] == [("adapter", "dora", option)]


def recipe(adapter, load=()):
    return SimpleNamespace(
        adapter={name: {} for name in adapter}, student=SimpleNamespace(load={name: {} for name in load})
    )


@pytest.mark.parametrize("loader", ["nf4", "fp4", "int8"])
def test_what_does_not_support_a_quantised_base_is_refused(loader):
    assert LoRA().check(recipe(["lora"], [loader])) == []
    assert LoRA(init_lora_weights="orthogonal").check(recipe(["lora"])) == []
    (problem,) = LoRA(init_lora_weights="orthogonal").check(recipe(["lora@odd"], [f"neoplug:{loader}"]))
    assert problem.path == ("adapter", "lora@odd", "init_lora_weights")
    assert f"`neoplug:{loader}`" in problem.what
    assert Full().check(recipe(["full"])) == []
    (problem,) = Full().check(recipe(["full"], [loader]))
    assert "`lora`" in problem.fix
