"""Every published recipe runs at the scale tiny."""

import json
import math

import pytest

from neoplug import recipe as recipes
from neoplug.recipe.scale import at_scale
from neoplug.recipe.source import shipped
from neoplug.runs.execute import execute
from neoplug.runs.progress import Silent

NAMES = [name for name in shipped() if name.startswith("published/")]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_its_student(name, tmp_path):
    """The student comes closer to teacher or text; by the alpha-beta divergence only in that divergence.

    With alpha + beta below 1 and a student far from its teacher, it decreases where the student becomes certain.
    """
    checked = recipes.load(name, changes=at_scale(name, "tiny"))
    result = execute(checked, tmp_path / "run", False, Silent())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 8
    assert all(math.isfinite(line["loss"]) for line in steps)
    if "/abkd/" in name:
        assert steps[-1]["loss"] < steps[0]["loss"]
    else:
        metric = "forward_kl" if "teacher" in result else "cross_entropy"
        assert result["after"][metric] < result["before"][metric]
    assert any("scale tiny" in remark for remark in result["remarks"])
    lock = json.loads((tmp_path / "run" / "lock.json").read_text())
    assert lock["recipe"]["reference"]["scale"] == "tiny"


def test_a_scale_replaces_models_data_and_steps_and_keeps_the_method():
    name = "published/todi/tinyllama_llama2"
    full, tiny = (recipes.load(name, changes=changes).resolved() for changes in (None, at_scale(name, "tiny")))
    for section in ("adapter", "loss", "optimizer", "seed"):
        assert tiny[section] == full[section]
    assert tiny["train"]["learning_rate"] == pytest.approx(3 * full["train"]["learning_rate"])
    assert tiny["train"]["lr_scheduler_type"] == full["train"]["lr_scheduler_type"]
    assert "SmolLM2" in tiny["teacher"]["model"]
    assert tiny["train"]["max_steps"] == 8


def test_a_recipe_without_a_teacher_gets_none_from_a_scale():
    name = "published/llm_neo/lora"
    assert recipes.load(name, changes=at_scale(name, "tiny")).recipe.teacher is None
