"""Probes of states and weights in whole runs: before, during and after training, resumed, and measured again."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import neoplug
from neoplug.errors import PluginError, RecipeError, RunError
from neoplug.recipe import load

TEXT = "It is another text, which no row of the training data has.\nA student may forget how to go on with it.\n" * 3
NOTHING = {"effective_rank": None, "intruder_dimensions": None, "matrices": 0}
TRIPS = """
@dataclass(eq=False)
class Trips:
    file: str

    @hookimpl
    def on_step_end(self, step):
        from pathlib import Path
        if step == 4 and Path(self.file).exists():
            Path(self.file).unlink()
            raise ValueError("tripped")
"""


@pytest.fixture
def probes(lab):
    (lab.folder / "other.txt").write_text(TEXT, encoding="utf-8")
    return {"cka": {"layers": {1: 3, -1: -1}}, "effective_rank": {}, "forgetting": {"source": "other.txt", "limit": 3}}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_of_an_adapter(lab, probes, dtype):
    run = lab.run("run", probes=probes, evaluate={"eval_steps": 3}, student={"dtype": dtype})
    result = run.result
    before, between, after, teacher = (
        measured["probes"]
        for measured in (result["before"], *result["evaluations"], result["after"], result["teacher"])
    )
    assert before["effective_rank"] == teacher["effective_rank"] == NOTHING
    assert before["forgetting"]["forward_kl"] == before["forgetting"]["cross_entropy_change"] == 0
    assert teacher["cka"] == {"1": None, "-1": None}
    assert teacher["forgetting"]["forward_kl"] is None
    assert teacher["forgetting"]["cross_entropy"] > 0
    for measured in (between, after):
        assert measured["effective_rank"]["matrices"] == 4
        assert 0 < measured["forgetting"]["forward_kl"] < 5
        own, start = (each["forgetting"]["cross_entropy"] for each in (measured, before))
        assert measured["forgetting"]["cross_entropy_change"] == pytest.approx(own - start, abs=1e-2)
        assert all(0 < value < 1 for value in measured["cka"].values())
    assert after["cka"] != before["cka"]
    assert between["forgetting"] != after["forgetting"]
    again = neoplug.evaluate(run.path, run.path / "recipe.yaml")["student"]["probes"]
    for name, numbers in after.items():
        assert again[name] == pytest.approx(numbers, rel=2e-2 if dtype == "bfloat16" else 1e-4)


def test_the_effective_rank_is_that_of_the_exported_model(lab, probes):
    run = lab.run("run", probes={"effective_rank": {}}, adapter={"dora": {"r": 4, "target_modules": ["q_proj"]}})
    base = AutoModelForCausalLM.from_pretrained(lab.base["student"]["model"], dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(neoplug.export_model(run.path, lab.folder / "merged"))
    ranks = []
    for layers in zip(base.model.layers, merged.model.layers, strict=True):
        old, new = (layer.self_attn.q_proj.weight.detach().double().numpy() for layer in layers)
        sizes = np.linalg.svd(new - old, compute_uv=False)
        shares = sizes[sizes > 1e-6 * np.linalg.norm(new)] / sizes.sum()
        ranks.append(np.exp(-(shares * np.log(shares)).sum()))
    assert run.result["after"]["probes"]["effective_rank"]["effective_rank"] == pytest.approx(np.mean(ranks), rel=1e-2)


def test_of_full_fine_tuning_and_a_resumed_run(lab, probes):
    lab.plugin("trips", TRIPS)
    switch = lab.folder / "switch"
    sections = {
        "probes": {**probes, "./trips.py:Trips": {"file": str(switch)}}, "adapter": {"full": {}},
        "train": {"learning_rate": 1e-4},
    }  # fmt: skip
    recipe = lab.recipe(**sections)
    whole = lab.run("whole", recipe)
    before, after = (whole.result[name]["probes"] for name in ("before", "after"))
    assert after["effective_rank"]["matrices"] == 14
    assert after["forgetting"]["forward_kl"] is None
    own, start = (each["forgetting"]["cross_entropy"] for each in (after, before))
    assert after["forgetting"]["cross_entropy_change"] == pytest.approx(own - start, abs=1e-9)
    assert own != start
    switch.touch()
    with pytest.raises(PluginError, match="tripped"):
        lab.run("parts", recipe)
    assert lab.run("parts", recipe, resume=True).result["after"]["probes"] == after
    again = neoplug.evaluate(whole.path, whole.path / "recipe.yaml")["student"]["probes"]
    assert again["effective_rank"] == NOTHING  # the saved model is not known to be a trained one
    assert again["forgetting"] == {
        "forward_kl": None, "cross_entropy": pytest.approx(own, rel=1e-4), "cross_entropy_change": None,
    }  # fmt: skip


@pytest.mark.parametrize("adapter", ["pissa", "lora_xs", "prompt_tuning"])
def test_of_adapters_whose_base_is_not_at_hand(lab, probes, adapter):
    options = {"num_virtual_tokens": 3} if adapter == "prompt_tuning" else {"r": 4, "target_modules": ["q_proj"]}
    run = lab.run("run", probes=probes, adapter={adapter: options})
    before, after = (run.result[name]["probes"] for name in ("before", "after"))
    assert after["effective_rank"]["matrices"] == (0 if adapter == "prompt_tuning" else 2)
    own, start = (each["forgetting"]["cross_entropy"] for each in (after, before))
    assert after["forgetting"]["cross_entropy_change"] == pytest.approx(own - start, abs=1e-5)
    assert (after["forgetting"]["forward_kl"] is None) == (adapter != "prompt_tuning")


def test_where_the_teacher_has_texts_of_its_own_the_answers_are_compared(lab, probes):
    template = "{% for m in messages %}{{ m['role'] }}, at length:\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    run = lab.run("run", probes={"cka": {}}, teacher={"chat_template": template}, train={"max_steps": 1})
    assert 0 < run.result["after"]["probes"]["cka"]["-1"] < 1


@pytest.mark.parametrize("teacher", [{"self": "base"}, {"self": "ema", "decay": 0.5}])
def test_the_student_as_its_own_teacher(lab, probes, teacher):
    own = {**dict.fromkeys(lab.base["teacher"]), **teacher}
    run = lab.run("run", probes={**probes, "cka": {}}, teacher=own, loss={"forward_kl": {}, "cross_entropy": {}})
    before, after = (run.result[name]["probes"]["cka"]["-1"] for name in ("before", "after"))
    assert run.result["teacher"]["probes"]["effective_rank"] == NOTHING
    assert run.result["after"]["probes"]["effective_rank"]["matrices"] == 4
    assert before == pytest.approx(1, abs=1e-9)
    assert 0 < after < 1


def test_a_layer_that_a_model_does_not_have_ends_the_run_with_those_that_it_has(lab):
    with pytest.raises(RunError, match=r"the model has no layer 7\nwhy: .* 0, the embeddings, to 4, .*"):
        lab.run("run", probes={"cka": {"layers": {1: 7}}})


def test_the_cache_of_a_teacher_does_not_depend_on_probes(lab, probes, monkeypatch):
    monkeypatch.setenv("NEOPLUG_HOME", str(lab.folder / "home"))
    cached = {"cache": {"sampled": {"bytes": 30}}}
    sections = {"teacher": cached, "loss": {"forward_kl": {}}, "train": {"max_steps": 1}}
    lab.run("without", **sections)
    (folder,) = (path for path in (lab.folder / "home" / "teachers").iterdir() if path.is_dir())
    del probes["cka"]
    run = lab.run("with", probes=probes, **sections)
    assert [path for path in folder.parent.iterdir() if path.is_dir()] == [folder]
    assert run.result["teacher"]["probes"]["effective_rank"] == NOTHING
    with pytest.raises(RecipeError, match="the probe `cka` compares the student with the teacher"):
        load(lab.recipe("compares", probes={"cka": {}}, **sections))


def test_a_recipe_without_a_teacher(lab):
    run = lab.run("run", probes={"cka": {}}, teacher=None, loss={"cross_entropy": {}}, train={"max_steps": 1})
    assert json.loads((run.path / "result.json").read_text())["after"]["probes"] == {"cka": {"-1": None}}
