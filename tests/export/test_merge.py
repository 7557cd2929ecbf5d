"""Export: the merged model equals base and adapter as computed by plain transformers and peft."""

import json
from dataclasses import dataclass

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig

from neoplug import hookimpl
from neoplug.errors import UsageError
from neoplug.export.merge import export
from neoplug.models.load import load_weights
from neoplug.models.resolve import locate
from neoplug.runs.directory import RunDir

pytestmark = pytest.mark.filterwarnings("ignore:.*removed in v6:FutureWarning")  # raised within peft
IDS = torch.arange(3, 43).view(2, 20)
QUANTISED = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS, use_cache=False).logits


def make_run(path, model, adapter, **more):
    """Make a run directory like that of a finished run."""
    located = locate(str(model))
    resolved = {
        "format": 1,
        "student": {"model": str(model)},
        "data": {},
        "loss": {},
        "adapter": adapter,
        "seed": 0,
    } | more
    record = {"source": str(model), "revision": None, "sha256": located.sha256}
    lock = {
        "format": 1, "seed": 0, "platform": "", "versions": {}, "hardware": {"cpu": "", "gpus": []},
        "data": {"fingerprint": ""}, "models": {"student": record},
    }  # fmt: skip
    return RunDir.create(path, resolved, lock)


def train(base, seed=5, **options):
    """Return a PeftModel whose weights differ much from its base."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    model = get_peft_model(base, config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
        if "magnitude" in name:
            weight.data *= 1.3
    return model


@pytest.fixture
def lora_run(tmp_path, tiny_student):
    run = make_run(tmp_path / "run", tiny_student, {"lora": {}})
    model = train(AutoModelForCausalLM.from_pretrained(tiny_student))
    model.save_pretrained(run.adapter)
    return run, logits(model)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_merged_equals_base_and_adapter(tmp_path, tiny_teacher, options):
    run = make_run(tmp_path / "run", tiny_teacher, {"dora" if options.get("use_dora") else "lora": {}})
    base = AutoModelForCausalLM.from_pretrained(tiny_teacher)
    untrained = logits(base)
    model = train(base, **options)
    model.save_pretrained(run.adapter)
    out = AutoModelForCausalLM.from_pretrained(export(run.path, tmp_path / "out"))
    torch.testing.assert_close(logits(out), logits(model), rtol=1e-4, atol=1e-4)
    assert (logits(out) - untrained).abs().max() > 0.5


def quantised(folder, kind):
    config = BitsAndBytesConfig(**QUANTISED[kind])
    return load_weights(locate(str(folder)), quantization_config=config, device_map={"": "cpu"}, dtype=torch.float32)


@pytest.mark.parametrize("kind", QUANTISED)
def test_an_adapter_trained_on_a_quantised_base_is_merged_into_the_stored_weights(tmp_path, tiny_student, kind):
    run = make_run(tmp_path / "run", tiny_student, {"lora": {}})
    train(quantised(tiny_student, kind)).save_pretrained(run.adapter)
    out = AutoModelForCausalLM.from_pretrained(export(run.path, tmp_path / "out"))
    base = AutoModelForCausalLM.from_pretrained(tiny_student)
    from peft import PeftModel

    expected = PeftModel.from_pretrained(base, run.adapter)
    torch.testing.assert_close(logits(out), logits(expected), rtol=1e-4, atol=1e-4)
    assert not hasattr(out.config, "quantization_config")


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_base_stored_quantised_is_dequantised(tmp_path, tiny_student, kind):
    stored = tmp_path / "stored"
    base = quantised(tiny_student, kind)
    base.save_pretrained(stored)
    AutoTokenizer.from_pretrained(tiny_student).save_pretrained(stored)
    run = make_run(tmp_path / "run", stored, {"lora": {}})
    model = train(base)
    model.save_pretrained(run.adapter)
    trained = model.train()(input_ids=IDS, use_cache=False).logits  # in evaluation mode int8 rounds activations
    out = AutoModelForCausalLM.from_pretrained(export(run.path, tmp_path / "out"))
    assert not hasattr(out.config, "quantization_config")
    assert out.dtype == torch.float32
    torch.testing.assert_close(logits(out), trained, rtol=1e-3, atol=1e-3)


def test_the_prepared_student_is_the_base(tmp_path, tiny_student, tiny_teacher):
    run = make_run(tmp_path / "run", tiny_teacher, {"lora": {}})
    base = AutoModelForCausalLM.from_pretrained(tiny_student)
    base.save_pretrained(run.student)
    AutoTokenizer.from_pretrained(tiny_student).save_pretrained(run.student)
    model = train(base)
    model.save_pretrained(run.adapter)
    out = AutoModelForCausalLM.from_pretrained(export(run.path, tmp_path / "out"))
    torch.testing.assert_close(logits(out), logits(model), rtol=1e-4, atol=1e-4)


def test_a_whole_model_keeps_its_weights(tmp_path, tiny_student):
    run = make_run(tmp_path / "run", tiny_student, {"full": {}})
    model = AutoModelForCausalLM.from_pretrained(tiny_student)
    for weight in model.parameters():
        weight.data += 0.01
    model.save_pretrained(run.model)
    out = AutoModelForCausalLM.from_pretrained(export(run.path, tmp_path / "out"))
    torch.testing.assert_close(logits(out), logits(model), rtol=0, atol=0)


@dataclass(eq=False)
class Scaled:
    """An adapter without peft: a trained factor of the head, which its own hook merges."""

    @hookimpl
    def add_adapter(self, model):
        model.lm_head.factor = torch.nn.Parameter(torch.ones(1))
        model.lm_head.register_forward_hook(lambda module, inputs, output: output * module.factor)
        return model

    @hookimpl
    def save_adapter(self, model, path):
        (path / "factor.txt").write_text(str(model.lm_head.factor.item()))

    @hookimpl
    def load_adapter(self, model, path):
        model = self.add_adapter(model)
        model.lm_head.factor.data.fill_(float((path / "factor.txt").read_text()))
        return model

    @hookimpl
    def merge_adapter(self, model):
        model.lm_head._forward_hooks.clear()
        model.lm_head.weight.mul_(model.lm_head.factor)
        del model.lm_head.factor
        return model


def test_an_adapter_without_peft_is_loaded_from_its_files_and_merged_by_its_hook(tmp_path, tiny_teacher):
    run = make_run(tmp_path / "run", tiny_teacher, {f"{__file__}:Scaled": {}})
    with pytest.raises(UsageError, match="is not finished"):  # a run killed after a checkpoint
        export(run.path, tmp_path / "out")
    run.adapter.mkdir()  # a run killed before its result was written
    (run.adapter / "factor.txt").write_text("1.5")
    out = AutoModelForCausalLM.from_pretrained(export(run.path, tmp_path / "out", trust=[__file__]))
    expected = 1.5 * logits(AutoModelForCausalLM.from_pretrained(tiny_teacher))
    torch.testing.assert_close(logits(out), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_folder_holds_only_a_model(tmp_path, lora_run, tiny_student, dtype):
    run, _ = lora_run
    out = export(run.path, tmp_path / "out", dtype)
    names = {file.name for file in out.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not [name for name in names if "adapter" in name or "neoplug" in name or "optim" in name]
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == dtype
    assert "quantization_config" not in config
    assert AutoModelForCausalLM.from_pretrained(out).dtype == getattr(torch, dtype)
    ours, original = (AutoTokenizer.from_pretrained(folder) for folder in (out, tiny_student))
    assert ours.get_vocab() == original.get_vocab()
    assert ours.chat_template == original.chat_template
    ours, original = (GenerationConfig.from_pretrained(folder).to_dict() for folder in (out, tiny_student))
    assert ours == original


def test_bfloat16_rounds_once_after_the_merge(tmp_path, lora_run):
    run, _ = lora_run
    whole, half = (export(run.path, tmp_path / dtype, dtype) for dtype in ("float32", "bfloat16"))
    whole, half = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (whole, half))
    assert all(torch.equal(whole[name].bfloat16(), half[name]) for name in whole)


def test_an_existing_folder_is_not_overwritten(tmp_path, lora_run):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UsageError, match="exists already"):
        export(lora_run[0].path, out)
    assert list(out.iterdir()) == []


def test_a_changed_base_is_refused(tmp_path, tiny_student):
    import shutil

    model = tmp_path / "model"
    shutil.copytree(tiny_student, model)
    run = make_run(tmp_path / "run", model, {"lora": {}})
    train(AutoModelForCausalLM.from_pretrained(model)).save_pretrained(run.adapter)
    (model / "config.json").write_text((model / "config.json").read_text() + " ")
    with pytest.raises(UsageError, match="not the model that the run"):
        export(run.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_invalid_exports_are_refused(tmp_path, tiny_student):
    with pytest.raises(UsageError, match="did you mean `bfloat16`"):
        export(tmp_path, tmp_path / "out", "bfloat61")
    with pytest.raises(UsageError, match="no run directory"):
        export(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(UsageError, match="is not finished"):
        export(make_run(tmp_path / "run", tiny_student, {"lora": {}}).path, tmp_path / "out")
