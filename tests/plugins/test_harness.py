"""Tasks of lm_eval as a probe: metrics equal those of the built-in probe, and the run does not change."""

import json

import pytest
import yaml

import neoplug
from neoplug import recipe
from neoplug.errors import RecipeError, RunError

ROWS = [
    {"query": f"What is {n} plus {n}?", "choices": [f"It is {m}." for m in (n, 2 * n, 77)], "gold": n % 3}
    for n in range(12)
]


@pytest.fixture
def write(tmp_path, tiny_student, tiny_teacher, tiny_chat):
    """Return a function that writes a recipe of three steps with these probes."""

    def write(**probes):
        file = tmp_path / "recipe.yaml"
        values = {
            "teacher": {"model": str(tiny_teacher), "dtype": "float32"},
            "student": {"model": str(tiny_student), "dtype": "float32"},  # rounding would change choices
            "data": {"source": str(tiny_chat), "held_out": 3},
            "adapter": {"lora": {"r": 4, "lora_dropout": 0.3, "target_modules": ["q_proj", "v_proj"]}},
            "loss": {"forward_kl": {}},
            "treatments": {"label_noise": {"probability": 0.3}},
            "train": {"max_steps": 3, "learning_rate": 0.01},
            "evaluate": {"eval_steps": 1},
            "probes": probes,
        }
        file.write_text(yaml.safe_dump(values))
        return file

    return write


@pytest.fixture
def losses(tmp_path):
    """Return a function that runs a recipe and returns its result and each step's loss."""

    def losses(file, name):
        result = neoplug.run(file, output=tmp_path / name)
        return result, [
            json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]

    return losses


@pytest.mark.slow
def test_it_measures_what_the_built_in_evaluator_measures_and_does_not_change_the_run(
    write, losses, tmp_path, task_folder
):
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    task_folder(tmp_path / "tasks", tmp_path / "sums.jsonl")
    harness = {"tasks": "peer", "include_path": "tasks", "batch_size": 4}
    file = write(lm_eval=harness, multiple_choice={"tasks": "sums.jsonl"})
    result, seen = losses(file, "with")
    for measured in (result["before"], *result["evaluations"], result["after"], result["teacher"]):
        theirs, ours = measured["probes"]["lm_eval"]["peer"], measured["probes"]["multiple_choice"]["sums"]
        for metric in ("acc", "acc_norm", "acc_stderr", "acc_norm_stderr"):
            assert theirs[metric] == pytest.approx(ours[metric], abs=1e-12)
    assert (
        len({measured["probes"]["lm_eval"]["peer"]["acc_norm"] for measured in (result["before"], result["teacher"])})
        == 2
    )
    plain, unmoved = losses(write(), "without")
    assert seen == unmoved
    assert {**result["after"], "probes": {}} == plain["after"]
    with pytest.raises(RunError, match=r"no task `pear`; did you mean `peer`\?\nwhy: looked in .*tasks"):
        neoplug.run(write(lm_eval={**harness, "tasks": ["pear"]}), output=tmp_path / "none")


def test_without_lm_eval_it_is_refused_with_the_extra(write, monkeypatch):
    monkeypatch.setattr("neoplug_probes.harness.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"(?s)lm_eval is not installed.*pip install 'neoplug\[eval\]'"):
        recipe.load(write(lm_eval={"tasks": "arc_easy"}))
