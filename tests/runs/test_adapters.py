"""Adapters that change the base, the penalty or the rank, in complete runs: saved, exported and resumed correctly."""

import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from neoplug.errors import UsageError
from neoplug.export.merge import export

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*removed in v6:FutureWarning"),  # peft uses deprecated names of transformers
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning"),
]
IDS = torch.arange(3, 43).view(2, 20)


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("name", ["adalora", "corda", "loftq", "moslora", "pissa"])
def test_a_run_is_saved_for_its_base_exported_and_resumed(lab, tiny_student, name):
    whole = lab.run("run", adapter={name: {}}, train={"learning_rate": 0.002})
    shipped = whole.path / "student"
    assert shipped.exists() == (name == "loftq")
    base = AutoModelForCausalLM.from_pretrained(shipped if shipped.exists() else tiny_student, dtype=torch.float32)
    untrained = logits(base)
    loaded = logits(PeftModel.from_pretrained(base, whole.path / "adapter"))
    exported = AutoModelForCausalLM.from_pretrained(export(whole.path, lab.folder / "out"))
    torch.testing.assert_close(logits(exported), loaded, rtol=1e-3, atol=1e-3)
    assert (loaded - untrained).abs().max() > 1e-3
    facts, adapter, lines = whole.facts, whole.adapter_bytes, [line["loss"] for line in whole.lines]
    (whole.path / "result.json").unlink()
    for step in (4, 6):
        shutil.rmtree(whole.path / "checkpoints" / f"step-{step}")
    again = lab.run("run", lab.folder / "run-recipe.yaml", resume=True)
    assert again.facts == facts
    assert again.adapter_bytes == adapter
    assert [line["loss"] for line in again.lines] == lines


def test_adaloras_orthogonality_is_in_the_objective(lab):
    run = lab.run("run", adapter={"adalora": {"orth_reg_weight": 0.25}})
    assert all(line["penalty"] > 0 for line in run.lines)


@pytest.mark.parametrize(
    ("name", "why"), [("lily", "the change depends on the input"), ("adaption_prompt", "no weight can represent")]
)
def test_an_adapter_that_cannot_be_merged_is_not_exported(lab, name, why):
    run = lab.run("run", adapter={name: {}}, train={"max_steps": 2})
    with pytest.raises(UsageError, match=why):
        export(run.path, lab.folder / "out")


def test_an_adapter_that_changes_the_base_is_refused_on_4_bits_before_weights_are_loaded(lab):
    with pytest.raises(UsageError, match="`pissa` does not support a student loaded by `nf4`") as caught:
        lab.run("run", student={"load": {"nf4": {}}}, adapter={"pissa": {}})
    assert "name `lora`" in str(caught.value)
    assert not (lab.folder / "run").exists()
