"""The weights that an adapter changes are those that its options select, in families with and without experts."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from neoplug import hookimpl
from neoplug.errors import RecipeError
from neoplug.models.load import meta_model
from neoplug.registry import Plugins
from neoplug.runs.adapted_weights import add_adapter
from neoplug.testing.families import configuration
from neoplug_adapters.dora import DoRA
from neoplug_adapters.eva import EVA
from neoplug_adapters.ln_tuning import LNTuning
from neoplug_adapters.loha import LoHa
from neoplug_adapters.lora import LoRA
from neoplug_adapters.pissa import PiSSA

# raised within peft; its check of patterns overlooks stacked experts
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*removed in v6:FutureWarning"),
    pytest.mark.filterwarnings(r"ignore:(.|\n)*_pattern keys did not match:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:You have passed exclude_modules:UserWarning"),
    pytest.mark.filterwarnings("ignore:target_modules=(.|\n)* were set but no module was matched:RuntimeWarning"),
]
SHARED = ["shared_experts.gate_proj", "shared_experts.up_proj", "shared_experts.down_proj"]


@dataclass(eq=False)
class OtherPlugin:
    """An adapter of peft with one option that has none of peft's names."""

    config: dict[str, Any]

    @hookimpl
    def add_adapter(self, model):
        return get_peft_model(model, LoraConfig(**self.config))


def add(plugin, model):
    plugins = Plugins({"adapter": {"mine": plugin}})
    rng = torch.Generator().manual_seed(0)
    return add_adapter(plugins, model, batches=None, total_steps=1, rng=rng)


def build(family, **changes):
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(configuration(family, **changes), dtype=torch.float32).eval()
    return model.requires_grad_(False)


def ranks(plugin, family, folder, **changes):
    """Return layer -> rank as stored in peft's file, whose B have `rank` columns for each expert.

    The file is loaded by plain peft into another copy of the base, which must then have the same logits.
    """
    model = add(plugin, build(family, **changes))
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(folder)
    loaded, ids = PeftModel.from_pretrained(build(family, **changes), folder), torch.arange(12)[None] + 20
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
        assert not torch.equal(model(ids).logits, build(family, **changes)(ids).logits)
    found, stored = {}, load_file(folder / "adapter_model.safetensors")
    for name, weight in stored.items():
        layer, _, kind = name.removeprefix("base_model.model.model.").partition(".lora_A")
        if kind:
            found[layer.replace("layers.", "")] = weight.shape[0]
    return found


ATTENTION = {f"{n}.self_attn.{p}_proj": 8 for n in (0, 1) for p in "qkvo"}
# with 4 experts: 4 r rows of A; transformers stacks gate and up, so twice the rank, as peft converts them
ROUTED = {"1.mlp.experts": 4 * 8, "1.mlp.experts.base_layer": 4 * 16}
DENSE = {f"0.mlp.{p}_proj": 8 for p in ("gate", "up", "down")}
ALL_SHARED = {f"1.mlp.{name}": 8 for name in SHARED}
ROUTER = {"1.mlp.gate": 8}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"target_modules": SHARED[:2]}, {f"1.mlp.{name}": 8 for name in SHARED[:2]}),
        ({}, ATTENTION | ROUTED | DENSE | ALL_SHARED | ROUTER),
        ({"exclude_modules": ["experts"]}, ATTENTION | DENSE | ALL_SHARED | ROUTER),
        ({"exclude_modules": ["experts", "gate", "shared_experts.up_proj"]},
         ATTENTION | DENSE | {f"1.mlp.{name}": 8 for name in SHARED if "up" not in name}),
        ({"target_modules": ["down_proj"], "layers_to_transform": [0]}, {"0.mlp.down_proj": 8}),
        ({"target_modules": ["down_proj"], "layers_to_transform": 1},
         {"1.mlp.experts": 32, "1.mlp.shared_experts.down_proj": 8}),
        ({"target_modules": r".*\.shared_experts\..*"}, ALL_SHARED),
        ({"target_modules": ["experts", "q_proj"], "rank_pattern": {"experts": 2}},
         {"1.mlp.experts": 8, "1.mlp.experts.base_layer": 16, "0.self_attn.q_proj": 8, "1.self_attn.q_proj": 8}),
        ({"target_modules": ["mlp.down_proj", *SHARED], "rank_pattern": {"shared_experts.*": 3, "mlp.down_proj": 5}},
         {"0.mlp.down_proj": 5} | dict.fromkeys(ALL_SHARED, 3)),
    ],
)  # fmt: skip
def test_shared_and_routed_experts_and_dense_layers_are_apart(options, expected, tmp_path):
    assert ranks(LoRA(**options), "glm4_moe", tmp_path) == expected


def test_all_linear_adapts_dense_layers_between_experts(tmp_path):
    assert ranks(LoRA(), "qwen3_moe", tmp_path, mlp_only_layers=[0]) == ATTENTION | ROUTED | DENSE | ROUTER


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_all_linear_is_what_peft_adapts_where_experts_are_all_that_is_converted(family, tmp_path):
    plain = get_peft_model(build(family), LoraConfig(target_modules="all-linear", lora_alpha=16))
    plain.save_pretrained(tmp_path / "plain")
    stored = load_file(tmp_path / "plain" / "adapter_model.safetensors")
    ours = add(LoRA(), build(family))
    ours.save_pretrained(tmp_path / "ours")
    mine = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    assert {name: weight.shape for name, weight in mine.items()} == {n: weight.shape for n, weight in stored.items()}
    scales = [{n: m.scaling for n, m in model.named_modules() if hasattr(m, "scaling")} for model in (ours, plain)]
    assert scales[0] == scales[1]


def test_projections_of_stored_files_name_the_experts(tmp_path):
    options = {"target_modules": ["w1", "w2", "w3"], "layers_to_transform": [1], "rank_pattern": {"w2": 3}}
    assert ranks(LoRA(**options), "mixtral", tmp_path) == {
        "1.mlp.experts": 4 * 3, "1.mlp.experts.base_layer": 4 * 16,
    }  # fmt: skip


def test_experts_that_peft_does_not_convert_are_adapted_by_name(tmp_path):
    found = ranks(LoRA(target_modules=["q_proj", "experts.down_proj"]), "gpt_oss", tmp_path)
    assert found == {
        f"{n}.{name}": rank for n in (0, 1) for name, rank in (("self_attn.q_proj", 8), ("mlp.experts", 32))
    }
    assert not any("experts" in name for name in ranks(LoRA(), "gpt_oss", tmp_path))


@pytest.mark.parametrize(
    ("family", "plugin", "message"),
    [
        ("deepseek_v3", LoRA(target_modules=["gate_proj"]), "`gate_proj` is named without `up_proj`"),
        ("glm4_moe", LoRA(target_modules=["experts"], rank_pattern={"up_proj": 2}), "several values for the proj"),
        ("glm4_moe", DoRA(target_modules=SHARED), r"cannot adapt `.*shared_experts.gate_proj`(.|\n)*name `lora`"),
        ("glm4_moe", PiSSA(), "cannot adapt the experts"),
        ("mixtral", EVA(), "cannot adapt the experts"),
        ("glm4_moe", LoHa(target_modules=["gate_proj"]), r"`mine` does not adapt(.|\n)*exclude_modules: \[experts\]"),
        ("gpt_oss", LoHa(target_modules=["experts"]), "names 4 weights.*which `mine` does not|peft cannot"),
        ("llama", LoRA(target_modules=["q_proj"], rank_pattern={"down_proj": 16}), "`down_proj` is not adapted"),
        ("llama", LoRA(target_modules=["q_proj"], alpha_pattern={"down_proj": 16}), "`down_proj` is not adapted"),
        ("llama", LoRA(rank_pattern={"layers.0": 8}), r"`layers.0` names a module that holds(.|\n)*layers\.0\.\*"),
        ("llama", LoRA(exclude_modules=["mlp"]), "name the layers in it: down_proj, gate_proj, up_proj"),
        ("llama", LoRA(target_modules=["q_proj"], exclude_modules=["v_proj"]), "`v_proj` is none of the targets"),
        ("llama", LoRA(target_modules=["q_proj"], exclude_modules=["q_proj"]), "leaves nothing of `q_proj`|excluded"),
        ("llama", LoRA(target_modules=["q_proj", "embed_tokens"], layers_to_transform=[1]), "none of the layers of"),
        ("llama", LoHa(target_modules=["q_proj", "mlp"]), "`mlp` names a module that holds layers"),
        (
            "qwen2",
            LoRA(target_modules=["q_proj", "embed_tokens"], modules_to_save=["lm_head"]),
            r"names `model.embed_tokens`, which `mine` does not(.|\n)*`lm_head` too",
        ),
        ("llama", LoRA(target_modules=["q_proj", "lm_head"], modules_to_save=["lm_head"]), "`lm_head` is named twice"),
        ("deepseek_v3", OtherPlugin({"target_modules": SHARED[:2]}), "`shared_experts.gate_proj` names .*does not"),
        (
            "mixtral",
            OtherPlugin({"target_modules": "all-linear", "exclude_modules": ["experts"]}),
            "exclude_modules does not",
        ),
        (
            "mixtral",
            OtherPlugin({"target_modules": ["q_proj", "w1", "w3"], "layers_to_transform": [1]}),
            "layers_to_transform",
        ),
        (
            "mixtral",
            OtherPlugin({"target_modules": ["w2"], "rank_pattern": {"w2": 2}}),
            "has rank 8, but rank_pattern sets 2",
        ),
    ],
)
def test_a_difference_is_refused(family, plugin, message):
    with pytest.raises(RecipeError, match=message):
        add(plugin, meta_model(configuration(family)))


@pytest.mark.parametrize("word", ["All-Linear", "ALL-LINEAR"])
def test_all_linear_is_read_as_peft_reads_it(word):
    for kind in (LoRA, LoHa):
        names = [
            sorted(name for name, weight in add(kind(target_modules=each), meta_model(configuration("llama")))
                   .named_parameters() if weight.requires_grad)
            for each in (word, "all-linear")
        ]  # fmt: skip
        assert names[0] == names[1]


def test_a_plugins_own_word_for_layers_is_read_from_the_configuration():
    add(LNTuning(), meta_model(configuration("llama")))


def test_what_all_linear_omits_is_logged(caplog):
    with caplog.at_level("INFO", "neoplug"):
        add(LoHa(), meta_model(configuration("deepseek_v3")))
    assert "mine: all-linear does not adapt `model.layers.1.mlp.gate`" in caplog.text
    assert "loha does not adapt 9216 weights of experts" in caplog.text
