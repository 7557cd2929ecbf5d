"""The dry run of saving: what cannot be saved, or is saved otherwise than trained, ends the run before step 1."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from neoplug.errors import PluginError, RecipeError
from neoplug.export.merge import export

pytestmark = pytest.mark.filterwarnings("ignore:.*removed in v6:FutureWarning")  # raised within peft
LEAKS = """
from peft import LoraConfig, get_peft_model

@dataclass(eq=False)
class Leaks:
    leaves: str = "norm.weight"

    @hookimpl
    def add_adapter(self, model):
        adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
        for name, weight in adapted.named_parameters():
            if name.endswith(self.leaves):
                weight.requires_grad_(True)
        return adapted
"""
FAILS = """
from peft import LoraConfig, get_peft_model

@dataclass(eq=False)
class Fails:
    at: int

    @hookimpl
    def add_adapter(self, model):
        return get_peft_model(model, LoraConfig(target_modules=["q_proj"]))

    @hookimpl
    def save_adapter(self, model, path):
        calls = Path(__file__).with_name("calls")
        done = calls.stat().st_size + 1 if calls.exists() else 1
        calls.write_text("x" * done)
        if done == self.at:
            raise OSError("no such place")
        model.save_pretrained(path)
"""


def test_weights_that_are_trained_but_not_saved_are_refused_before_the_first_step(lab):
    lab.plugin("leaks", LEAKS)
    with pytest.raises(
        RecipeError, match=r"recipe.yaml:\d+:\d+: the adapter that `./leaks.py:Leaks` trains is not the"
    ):
        lab.run("run", adapter={"./leaks.py:Leaks": {}})
    assert not (lab.at("run").path / "metrics.jsonl").exists() or not lab.at("run").lines
    assert lab.at("run").result["status"] == "failed"
    assert lab.at("run").hidden_leftovers == []


def test_weights_that_are_saved_are_not_refused(lab):
    lab.plugin("leaks", LEAKS)
    lab.run("run", adapter={"./leaks.py:Leaks": {"leaves": "lora_A.default.weight"}}, train={"max_steps": 1})


def test_the_dry_run_changes_no_number(lab, monkeypatch):
    adapter = {"lora": {"r": 4, "lora_dropout": 0.3, "modules_to_save": ["norm"]}}
    tried = lab.run("tried", adapter=adapter)
    monkeypatch.setattr("neoplug.runs.trainer.dry_run_save", lambda *_: None)
    untried = lab.run("untried", adapter=adapter)
    assert tried.facts == untried.facts
    assert tried.adapter_bytes == untried.adapter_bytes


@pytest.mark.parametrize("name", ["pissa", "olora", "milora", "corda", "lora_ga", "moslora"])
@pytest.mark.parametrize("saved", ["lm_head", "embed_tokens"])
def test_an_adapter_with_files_of_its_own_saves_tied_weights(lab, tiny_student, name, saved):
    """Plain peft and an export, which do not share code, load the same student."""
    run = lab.run("run", adapter={name: {"r": 4, "modules_to_save": [saved]}}, train={"max_steps": 1})
    base = AutoModelForCausalLM.from_pretrained(tiny_student, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, run.path / "adapter").eval()
    exported = AutoModelForCausalLM.from_pretrained(export(run.path, lab.folder / "whole"), dtype=torch.float32).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, exported(ids).logits, rtol=1e-3, atol=1e-3)
    stored = load_file(run.path / "checkpoints" / "step-1" / "trainable.safetensors")
    assert any("modules_to_save" in key for key in stored)
    trained = next(weight for key, weight in stored.items() if "modules_to_save" in key)
    assert torch.equal(adapted.get_output_embeddings().weight, trained)


def test_a_hook_that_cannot_save_fails_before_the_first_step(lab):
    lab.plugin("fails", FAILS)
    with pytest.raises(PluginError, match=r"`\./fails\.py:Fails` failed in `save_adapter`: OSError: no such place"):
        lab.run("run", adapter={"./fails.py:Fails": {"at": 1}})
    assert not list(lab.at("run").path.glob("checkpoints/*"))


def test_what_fails_at_the_end_leaves_the_trained_weights_to_a_resume(lab):
    lab.plugin("fails", FAILS)
    recipe = lab.recipe(adapter={"./fails.py:Fails": {"at": 2}}, train={"save_steps": 500})
    with pytest.raises(PluginError, match="no such place"):
        lab.run("run", recipe)
    (checkpoint,) = (lab.folder / "run" / "checkpoints").iterdir()
    assert json.loads((checkpoint / "state.json").read_text())["step"] == 6
    run = lab.run("run", recipe, resume=True)
    trained = load_file(checkpoint / "trainable.safetensors")
    saved = {key.replace(".weight", ".default.weight"): weight for key, weight in run.adapter.items()}
    assert all(torch.equal(trained[key], weight) for key, weight in saved.items())
