"""Every published recipe runs at the scale tiny; five land in the distribution over seeds that they ship."""

import json
import math
from pathlib import Path

import pytest
from scipy.stats import t

from neoplug import recipe as recipes
from neoplug.recipe.scale import at_scale
from neoplug.recipe.source import shipped
from neoplug.runs.execute import execute
from neoplug.runs.progress import Silent

NAMES = [name for name in shipped() if name.startswith("published/")]
MEASURED = json.loads((Path(__file__).parents[2] / "recipes" / "published" / "tiny.json").read_text(encoding="utf-8"))
NEW_SEED = 6
OTHER_PROCESSOR = 2e-3  # relative: eight steps in float32, whose sums another processor adds in another order


def run(name, folder, *overrides):
    return execute(recipes.load(name, overrides, at_scale(name, "tiny")), folder, False, Silent())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_its_student(name, tmp_path):
    """The student comes closer to teacher or text; by the alpha-beta divergence only in that divergence.

    With alpha + beta below 1 and a student far from its teacher, it decreases where the student becomes certain.
    """
    result = run(name, tmp_path / "run")
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


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_a_measured_seed_gives_its_value_and_a_new_one_lies_in_the_prediction_interval(name, tmp_path):
    """Mean +- t s sqrt(1 + 1/n) has the value of one more seed with probability 99 %."""
    again, new = (run(name, tmp_path / str(seed), f"seed={seed}")["after"] for seed in (1, NEW_SEED))
    for metric, by_seed in MEASURED[name].items():
        assert again[metric] == pytest.approx(by_seed["1"], rel=OTHER_PROCESSOR)
        values = list(by_seed.values())
        n, mean = len(values), math.fsum(values) / len(values)
        assert n >= 5
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
        assert abs(new[metric] - mean) <= t.ppf(0.995, n - 1) * deviation * math.sqrt(1 + 1 / n)


def test_five_recipes_have_a_distribution_over_seeds():
    assert len(MEASURED) >= 5


def test_a_scale_replaces_models_data_and_steps_and_keeps_the_method():
    name = "published/todi/tinyllama_llama2"
    full, tiny = (recipes.load(name, changes=changes).resolved() for changes in (None, at_scale(name, "tiny")))
    for section in ("adapter", "loss", "optimizer", "seed"):
        assert tiny[section] == full[section]
    assert tiny["train"]["learning_rate"] == pytest.approx(3 * full["train"]["learning_rate"])
    assert tiny["train"]["lr_scheduler_type"] == full["train"]["lr_scheduler_type"]
    assert "SmolLM2" in tiny["teacher"]["model"]
    assert tiny["train"]["max_steps"] == 8


def test_the_target_at_a_scale_is_the_distribution_that_was_measured_at_it():
    name = "published/torchtune/kd_untuned_teacher"
    reference = recipes.load(name, changes=at_scale(name, "tiny")).recipe.reference
    assert set(reference.targets) == {"forward_kl", "cross_entropy"}
    values = list(MEASURED[name]["forward_kl"].values())
    assert reference.targets["forward_kl"].mean == pytest.approx(sum(values) / len(values))
    assert reference.targets["forward_kl"].n == len(values)


def test_a_recipe_without_a_teacher_gets_none_from_a_scale():
    name = "published/llm_neo/lora"
    assert recipes.load(name, changes=at_scale(name, "tiny")).recipe.teacher is None
