"""`match: parameters`: the adapters' sizes, against the closed formulas of their numbers of parameters."""

import pytest
import yaml

from neoplug.errors import RecipeError
from neoplug.studies.matching import matched
from neoplug.studies.specification import read

TARGETS = {"target_modules": ["q_proj", "v_proj"]}  # 48 -> 48 and 48 -> 24, in each of two layers
PER_RANK = 2 * (48 + 48 + 48 + 24)
MAGNITUDES = 2 * (48 + 24)


@pytest.fixture
def write(tmp_path, tiny_student, tiny_chat):
    def write(*, match="parameters", **adapters):
        base = {"student": {"model": str(tiny_student)}, "data": {"source": str(tiny_chat)}}
        base["train"] = {"max_steps": 1}
        adapters = {name: {plugin: {**TARGETS, **options}} for name, (plugin, options) in adapters.items()}
        study = {"base": "base.yaml", "axes": {"adapter": adapters}, "seeds": [0], "metrics": {"cross_entropy": {}}}
        study["axes"]["smoothing"] = {
            "0": {"loss": {"cross_entropy": {}}},
            "1": {"loss": {"cross_entropy": {"label_smoothing": 0.1}}},
        }
        for name, values in (("base", base), ("study", study | {"match": match})):
            (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        return read(tmp_path / "study.yaml")

    return write


def sizes(study):
    """Return arm -> r of its adapter."""
    adapters = {arm.name: study.resolve(arm, {}, 0).resolved()["adapter"] for arm in study.arms}
    return {name: options["r"] for name, adapter in adapters.items() for options in adapter.values()}


def test_each_adapter_has_the_size_nearest_to_that_of_the_first_arm(write):
    study = matched(write(small=("lora", {"r": 4}), large=("lora", {"r": 64}), dora=("dora", {"r": 2})))
    wanted = 4 * PER_RANK
    nearest = min(range(1, 100), key=lambda rank: abs(rank * PER_RANK + MAGNITUDES - wanted))
    expected = {"small": 4, "large": 4, "dora": nearest}
    assert sizes(study) == {f"{name}/{number}": size for name, size in expected.items() for number in (0, 1)}
    assert abs(nearest * PER_RANK + MAGNITUDES - wanted) > 0.05 * wanted  # far, but no size is nearer


def test_without_match_the_sizes_stay(write):
    study = write(match=None, small=("lora", {"r": 4}), large=("lora", {"r": 64}))
    assert matched(study) is study


def test_an_adapter_without_a_size_is_refused_at_the_key(write):
    study = write(small=("lora", {"r": 4}), norms=("ln_tuning", {}))
    with pytest.raises(
        RecipeError, match=r"study\.yaml:\d+:1: the arm `norms/0`: `ln_tuning` has no option that sizes it"
    ):
        matched(study)
