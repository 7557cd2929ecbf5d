"""Loading of models: arguments of plugins, other tasks, damaged files, attention implementations, models with code."""

import json
import logging
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from neoplug import hookimpl
from neoplug.environment.dtypes import default_dtype
from neoplug.errors import RecipeError, RunError
from neoplug.models.load import load_config, load_meta_model, load_model, load_tokenizer, load_weights, meta_model
from neoplug.models.resolve import locate
from neoplug.registry import Plugins


@dataclass(eq=False)
class LoadPlugin:
    """Sets `kwargs` of from_pretrained, and records its calls."""

    kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        self.calls = []

    @hookimpl
    def load_kwargs(self, role):
        self.calls.append(role)
        return self.kwargs

    @hookimpl
    def after_load(self, model, role):
        self.calls.append((type(model).__name__, role))


def load(folder, plugins=None, role="student", **more):
    options = {"dtype": torch.float32, "device": "cpu", "attn_implementation": None} | more
    section = f"{role}.load"
    return load_model(locate(str(folder)), plugins=Plugins(plugins or {}), role=role, section=section, **options)


def test_a_loaded_model_is_frozen_in_evaluation_mode_and_without_cache(tiny_student):
    model = load(tiny_student)
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())
    assert model.config.use_cache is False
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype(tiny_student, dtype):
    assert {weight.dtype for weight in load(tiny_student, dtype=dtype).parameters()} == {dtype}


def test_load_plugins_are_called_for_their_model_and_others_for_both(tiny_student, tiny_teacher):
    of_teacher, of_student, treatment = LoadPlugin(), LoadPlugin(), LoadPlugin()
    plugins = {"teacher.load": {"w": of_teacher}, "student.load": {"w": of_student}, "treatments": {"t": treatment}}
    load(tiny_teacher, plugins, role="teacher")
    load(tiny_student, plugins, role="student")
    assert of_teacher.calls == ["teacher", ("LlamaForCausalLM", "teacher")]
    assert of_student.calls == ["student", ("LlamaForCausalLM", "student")]
    assert treatment.calls == [("LlamaForCausalLM", "teacher"), ("LlamaForCausalLM", "student")]


def test_a_plugins_argument_reaches_the_loader(tiny_student):
    model = load(tiny_student, {"student.load": {"w": LoadPlugin({"attn_implementation": "eager"})}})
    assert model.config._attn_implementation == "eager"


def test_an_unknown_argument_of_the_loader_is_a_run_error(tiny_student):
    with pytest.raises(RunError, match=r"could not be loaded\nwhy: TypeError.*no_such_key"):
        load(tiny_student, {"student.load": {"w": LoadPlugin({"no_such_key": 1})}})


@pytest.mark.parametrize("others", [{"a": {"use_safetensors": True}}, {"dtype": {"dtype": "float32"}}])
def test_an_argument_set_twice_is_refused(tiny_student, others):
    plugins = {name: LoadPlugin(kwargs) for name, kwargs in others.items()} | {
        "z": LoadPlugin({"use_safetensors": True})
    }
    with pytest.raises(RecipeError, match="both set") as caught:
        load(tiny_student, {"student.load": plugins})
    assert caught.value.problems[0].path[:2] == ("student", "load")


def test_a_meta_model_has_the_models_shapes_and_no_weights(tiny_teacher):
    model, meta = load(tiny_teacher), meta_model(load_config(locate(str(tiny_teacher))))
    assert {n: w.shape for n, w in meta.named_parameters()} == {n: w.shape for n, w in model.named_parameters()}
    assert all(weight.is_meta and not weight.requires_grad for weight in meta.parameters())


def test_a_meta_model_copies_the_configuration(tiny_teacher):
    config = AutoConfig.from_pretrained(tiny_teacher)
    meta_model(config).config.num_hidden_layers = 1
    assert config.num_hidden_layers == 4
    assert config.use_cache


@pytest.fixture
def classifier(tmp_path):
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32
    )
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


def test_models_of_other_tasks_are_refused(classifier, tmp_path):
    with pytest.raises(RecipeError, match="is a LlamaForSequenceClassification, not a causal language model"):
        load(classifier)
    small = BertConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32)
    AutoModel.from_config(small).save_pretrained(tmp_path / "bert")
    with pytest.raises(RecipeError, match="is a BertModel, not a causal language model") as caught:
        load(tmp_path / "bert")
    assert caught.value.problems[0].path == ("student", "model")


def test_missing_weights_are_refused(tiny_student, tmp_path):
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
    with pytest.raises(RecipeError, match="no tokenizer that can be loaded"):
        load_tokenizer(locate(str(tmp_path)))


def test_nothing_is_printed_or_logged_off_a_terminal(tiny_student, capfd, caplog):
    with caplog.at_level(logging.WARNING):
        load(tiny_student)
        load_tokenizer(locate(str(tiny_student)))
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_the_default_dtype_is_bfloat16_only_where_it_is_native(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert default_dtype("cpu") == torch.float32
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert default_dtype(torch.device("cpu")) == torch.bfloat16
    assert default_dtype("mps") == torch.float32


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, tiny_student):
    """Return a copy of the student whose weights are in several files."""
    folder = shutil.copytree(tiny_student, tmp_path_factory.mktemp("sharded") / "model")
    (folder / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(tiny_student).save_pretrained(folder, max_shard_size="100KB")
    return folder


@pytest.fixture
def copied(sharded, tmp_path):
    """Return a copy of the sharded model, for a test to damage."""
    return shutil.copytree(sharded, tmp_path / "model")


def pickled(folder, content):
    for file in folder.glob("model*"):
        file.unlink()
    torch.save(content, folder / "pytorch_model.bin")


def test_shards_and_pickles_of_tensors_are_the_same_model(tiny_student, copied):
    whole, shards = load(tiny_student), load(copied)
    pickled(copied, whole.state_dict())
    for model in (shards, load(copied)):
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), model.parameters(), strict=True))


class RunsCode:
    def __reduce__(self):
        return (pytest.fail, ("a pickle ran code",))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: min(f.glob("*-of-*")).unlink(), r"No such file or directory.*model-00001-of"),
        (
            lambda f: min(f.glob("*-of-*")).write_bytes(b"garbage"),
            r"cannot be read\nwhy: SafetensorError.*\nfix: download",
        ),
        (lambda f: (f / "model.safetensors.index.json").write_text("{"), "could not be loaded\nwhy: JSONDecodeError"),
        (lambda f: pickled(f, {"lm_head.weight": RunsCode()}), "cannot be read\nwhy: of a .bin file only tensors"),
        (
            lambda f: edited(f, intermediate_size=99),
            r"shapes differ .*mlp\.down_proj\.weight is \[48, 96\], not \[48, 99\]",
        ),
    ],
)
def test_damaged_weights_are_a_run_error(copied, damage, message):
    damage(copied)
    with pytest.raises(RunError, match=message):
        load(copied)


def edited(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "llama", "num_attention_heads": "two"}'])
def test_a_damaged_configuration_is_refused(copied, content):
    (copied / "config.json").write_text(content)
    with pytest.raises(RecipeError, match="has no configuration that transformers can read"):
        load_config(locate(str(copied)))


@pytest.mark.parametrize("content", ["{", '{"version": "1.0"}'])
def test_a_damaged_tokenizer_is_refused(copied, content):
    (copied / "tokenizer.json").write_text(content)
    with pytest.raises(RecipeError, match="has no tokenizer that can be loaded"):
        load_tokenizer(locate(str(copied)))


@pytest.mark.parametrize(
    ("name", "expected"), [(None, "sdpa"), ("eager", "eager"), ("sdpa", "sdpa"), ("flex_attention", "flex_attention")]
)
def test_attention_implementation(tiny_student, name, expected):
    assert load(tiny_student, attn_implementation=name).config._attn_implementation == expected
    assert load_meta_model(locate(str(tiny_student)), "student", name).config._attn_implementation == expected


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_an_unknown_attention_is_refused_and_the_supported_ones_are_listed(tiny_student, role):
    with pytest.raises(
        RecipeError,
        match=r"cannot use the attention implementation `spda` here\n.*\nfix: choose one of eager, sdpa, flex_att",
    ) as caught:
        load_meta_model(locate(str(tiny_student)), role, "spda")
    assert caught.value.problems[0].path == (role, "attn_implementation")


def test_a_models_code_does_not_run_by_default(custom_code):
    folder, ran = custom_code
    located = locate(str(folder), path=("teacher", "model"))
    for use in (load_config, lambda located, _: load_weights(located)):
        with pytest.raises((RecipeError, RunError), match="trust_remote_code"):
            use(located, ("teacher", "model"))
    load_tokenizer(located)  # a tokenizer that needs no code
    assert not ran.exists()


def test_a_models_code_runs_with_trust_remote_code(custom_code, tiny_student):
    folder, ran = custom_code
    located = locate(str(folder), trust_remote_code=True)
    model = load_model(
        located, dtype=torch.float32, device="cpu", attn_implementation=None, plugins=Plugins({}), role="student",
        section="student.load",
    )  # fmt: skip
    assert (type(model).__name__, ran.exists()) == ("CustomModel", True)
    assert type(load_meta_model(located, "student")).__name__ == "CustomModel"
    assert torch.equal(model.lm_head.weight, load(tiny_student).lm_head.weight)
    before = located.sha256
    (folder / "custom.py").write_text("# other code")
    assert locate(str(folder), trust_remote_code=True).sha256 != before  # the hash covers the code


def test_a_missing_kernel_of_bitsandbytes_is_not_logged(capfd):
    """bitsandbytes logs it when peft is imported, to a logger without handlers: Python then writes it to stderr."""
    code = "import logging, neoplug.models.quiet\nlog = logging.getLogger('bitsandbytes.backends.cpu.ops').warning\n"
    code += "log('Failed to load CPU gemm_4bit_forward from kernels-community: %s', 'none')\nlog('something else')"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert capfd.readouterr().err == "something else\n"
