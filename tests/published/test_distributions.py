"""Published recipes land, at the scale tiny, in the distribution over seeds that they ship."""

import json
import math
from pathlib import Path

import pytest
from scipy.stats import t

from neoplug import recipe as recipes
from neoplug.recipe.scale import at_scale
from neoplug.runs.execute import execute
from neoplug.runs.progress import Silent

MEASURED = json.loads((Path(__file__).parents[2] / "recipes" / "published" / "tiny.json").read_text(encoding="utf-8"))
NEW_SEED = 6
OTHER_PROCESSOR = 2e-3  # relative: eight steps in float32, whose sums another processor adds in another order


def run(name, folder, seed):
    checked = recipes.load(name, [f"seed={seed}"], at_scale(name, "tiny"))
    return execute(checked, folder, False, Silent())["after"]


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_a_measured_seed_gives_its_value_and_a_new_one_lies_in_the_prediction_interval(name, tmp_path):
    """Mean +- t s sqrt(1 + 1/n) has the value of one more seed with probability 99 %."""
    again, new = (run(name, tmp_path / str(seed), seed) for seed in (1, NEW_SEED))
    for metric, by_seed in MEASURED[name].items():
        assert again[metric] == pytest.approx(by_seed["1"], rel=OTHER_PROCESSOR)
        values = list(by_seed.values())
        n, mean = len(values), math.fsum(values) / len(values)
        assert n >= 5
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
        assert abs(new[metric] - mean) <= t.ppf(0.995, n - 1) * deviation * math.sqrt(1 + 1 / n)


def test_five_recipes_have_a_distribution_over_seeds():
    assert len(MEASURED) >= 5


def test_the_target_at_a_scale_is_the_distribution_that_was_measured_at_it():
    name = "published/torchtune/kd_untuned_teacher"
    reference = recipes.load(name, changes=at_scale(name, "tiny")).recipe.reference
    assert set(reference.targets) == {"forward_kl", "cross_entropy"}
    values = list(MEASURED[name]["forward_kl"].values())
    assert reference.targets["forward_kl"].mean == pytest.approx(sum(values) / len(values))
    assert reference.targets["forward_kl"].n == len(values)
