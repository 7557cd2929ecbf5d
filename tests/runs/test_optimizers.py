"""Optimizers in complete runs: a resumed run is bit-identical, and unusable ones are refused before loading."""

import shutil

import pytest

from neoplug.errors import RecipeError

VECTORS = """
@dataclass(eq=False)
class Norms:
    @hookimpl
    def add_adapter(self, model):
        model.model.norm.weight.requires_grad_(True)
        return model
"""
EVERY = {
    "muon": {"weight_decay": 0.1},
    "adafactor": {},
    "adamw_8bit": {"min_8bit_size": 64},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_an_interrupted_run_resumes_bit_for_bit(lab, name):
    """With vectors as well as matrices, three rates and a schedule."""
    sections = {
        "adapter": {"dora": {"r": 4, "target_modules": ["q_proj", "v_proj"]}, "loraplus": {"lr_ratio": 4.0}},
        "optimizer": {name: EVERY[name]},
        "train": {"max_steps": 4, "lr_scheduler_type": "linear"},
    }
    whole = lab.run("run", **sections)
    facts, adapter = whole.facts, whole.adapter_bytes
    (whole.path / "result.json").unlink()
    shutil.rmtree(whole.path / "checkpoints" / "step-4")
    again = lab.run("run", lab.folder / "run-recipe.yaml", resume=True)
    assert again.facts == facts
    assert again.adapter_bytes == adapter
    assert len({line["loss"] for line in again.lines}) == 4


def test_muon_without_a_matrix_is_refused_before_weights_are_loaded(lab):
    lab.plugin("vectors", VECTORS)
    with pytest.raises(RecipeError, match=r"\.yaml:\d+:\d+: muon finds no matrix to train"):
        lab.run("run", adapter={"./vectors.py:Norms": {}}, optimizer={"muon": {}})
    assert not (lab.folder / "run").exists()
