"""Loading: what the plugins ask for reaches the model, once; what is no causal language model is refused."""

import json
import logging
import shutil
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, BertConfig, LlamaConfig, LlamaForSequenceClassification

from neoplug import hookimpl
from neoplug.errors import RecipeError, RunError
from neoplug.models import default_dtype, load_config, load_model, load_tokenizer, locate, skeleton
from neoplug.registry import Plugins


@dataclass(eq=False)
class Wants:
    """Asks from_pretrained for `kwargs`, and notes what it saw."""

    kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        self.seen = []

    @hookimpl
    def load_kwargs(self, role):
        self.seen.append(role)
        return self.kwargs

    @hookimpl
    def after_load(self, model, role):
        self.seen.append((type(model).__name__, role))


def load(folder, plugins=None, role="student", **more):
    options = {"dtype": torch.float32, "device": "cpu", "attn_implementation": None} | more
    section = f"{role}.load"
    return load_model(locate(str(folder)), plugins=Plugins(plugins or {}), role=role, section=section, **options)


def test_frozen_evaluating_and_without_cache(tiny_student):
    model = load(tiny_student)
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())
    assert model.config.use_cache is False
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype(tiny_student, dtype):
    assert {weight.dtype for weight in load(tiny_student, dtype=dtype).parameters()} == {dtype}


def test_attention(tiny_student):
    assert load(tiny_student, attn_implementation="eager").config._attn_implementation == "eager"
    assert load(tiny_student).config._attn_implementation == "sdpa"


def test_each_sees_its_own_model_and_the_others_see_both(tiny_student, tiny_teacher):
    theirs, ours, probe = Wants(), Wants(), Wants()
    plugins = {"teacher.load": {"w": theirs}, "student.load": {"w": ours}, "treatments": {"t": probe}}
    load(tiny_teacher, plugins, role="teacher")
    load(tiny_student, plugins, role="student")
    assert theirs.seen == ["teacher", ("LlamaForCausalLM", "teacher")]
    assert ours.seen == ["student", ("LlamaForCausalLM", "student")]
    assert probe.seen == [("LlamaForCausalLM", "teacher"), ("LlamaForCausalLM", "student")]


def test_a_plugins_key_reaches_the_loader(tiny_student):
    model = load(tiny_student, {"student.load": {"w": Wants({"attn_implementation": "eager"})}})
    assert model.config._attn_implementation == "eager"


def test_a_key_that_the_loader_does_not_know_is_a_failed_run(tiny_student):
    with pytest.raises(RunError, match=r"could not be loaded\nwhy: TypeError.*no_such_key"):
        load(tiny_student, {"student.load": {"w": Wants({"no_such_key": 1})}})


@pytest.mark.parametrize("others", [{"a": {"use_safetensors": True}}, {"dtype": {"dtype": "float32"}}])
def test_a_key_asked_for_twice_is_refused(tiny_student, others):
    plugins = {name: Wants(kwargs) for name, kwargs in others.items()} | {"z": Wants({"use_safetensors": True})}
    with pytest.raises(RecipeError, match="both set") as caught:
        load(tiny_student, {"student.load": plugins})
    assert caught.value.problems[0].path[:2] == ("student", "load")


def test_a_skeleton_has_the_models_shapes_and_no_weights(tiny_teacher):
    model, bones = load(tiny_teacher), skeleton(load_config(locate(str(tiny_teacher))))
    assert {n: w.shape for n, w in bones.named_parameters()} == {n: w.shape for n, w in model.named_parameters()}
    assert all(weight.is_meta and not weight.requires_grad for weight in bones.parameters())


def test_a_skeleton_leaves_the_configuration_alone(tiny_teacher):
    config = AutoConfig.from_pretrained(tiny_teacher)
    skeleton(config).config.num_hidden_layers = 1
    assert config.num_hidden_layers == 4
    assert config.use_cache


@pytest.fixture
def classifier(tmp_path):
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32
    )
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


def test_other_tasks_are_refused(classifier, tmp_path):
    with pytest.raises(RecipeError, match="is a LlamaForSequenceClassification, no causal language model"):
        load(classifier)
    small = BertConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32)
    AutoModel.from_config(small).save_pretrained(tmp_path / "bert")
    with pytest.raises(RecipeError, match="is a BertModel, no causal language model") as caught:
        load(tmp_path / "bert")
    assert caught.value.problems[0].path == ("student", "model")


def test_code_from_the_hub_never_runs(tmp_path):
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')\n")
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match="code of its own, which neoplug never runs"):
        load_config(locate(str(tmp_path)))


def test_missing_weights_are_not_made_up(tiny_student, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_student, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match=r"lacks 1 of its weights, such as model\.layers\.1\.mlp\.up_proj\.weight"):
        load(folder)


def test_a_model_without_tokenizer_is_refused(tiny_student, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_student / name, tmp_path)
    with pytest.raises(RecipeError, match="no tokenizer that loads"):
        load_tokenizer(locate(str(tmp_path)))


def test_quiet_off_a_terminal(tiny_student, capfd, caplog):
    with caplog.at_level(logging.WARNING):
        load(tiny_student)
        load_tokenizer(locate(str(tiny_student)))
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_default_dtype_asks_for_native_bfloat16_only(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert default_dtype("cpu") == torch.float32
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert default_dtype(torch.device("cpu")) == torch.bfloat16
    assert default_dtype("mps") == torch.float32
