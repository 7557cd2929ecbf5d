"""The files evaluation/NAME.parquet of a run: their names and contents, and that a resumed run has the same."""

import math
import shutil

import pytest
from pyarrow import parquet

NAMES = {"before", "teacher", "after", "step-2", "step-4"}


def tables(run):
    return {path.stem: parquet.read_table(path).to_pylist() for path in (run.path / "evaluation").iterdir()}


def contents(run):
    return {path.stem: path.read_bytes() for path in (run.path / "evaluation").iterdir()}


@pytest.fixture(scope="module")
def run(module_lab):
    return module_lab.run("run", evaluate={"eval_steps": 2})


def test_the_result_is_computed_from_the_tables(run):
    found = tables(run)
    assert found.keys() == NAMES
    results = {name: run.result[name] for name in ("before", "teacher", "after")}
    results |= {f"step-{evaluation['step']}": evaluation for evaluation in run.result["evaluations"]}
    for name, rows in found.items():
        tokens = sum(row["tokens"] for row in rows)
        for column in {"cross_entropy", "entropy", "forward_kl", "jsd"} & rows[0].keys():
            mean = math.fsum(row[column] for row in rows) / tokens
            assert results[name][column] == pytest.approx(mean, rel=1e-12)
        assert [row["number"] for row in rows] == list(range(len(rows)))
    assert len({tuple((row["document"], row["tokens"]) for row in rows) for rows in found.values()}) == 1


def test_without_a_teacher_its_columns_are_absent(lab):
    run = lab.run("alone", teacher=None, loss={"cross_entropy": {}}, train={"max_steps": 1})
    found = tables(run)
    assert found.keys() == {"before", "after"}
    assert found["after"][0].keys() == {"document", "number", "tokens", "cross_entropy", "entropy"}


def test_a_resumed_run_keeps_and_rewrites_the_same_files(run, module_lab):
    folder = module_lab.folder / "resumed"
    shutil.copytree(run.path, folder)
    (folder / "result.json").unlink()
    for path in (*folder.glob("checkpoints/step-[46]"), *folder.glob("evaluation/step-4*"), *folder.glob("*/after*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(folder / "adapter")
    resumed = module_lab.run("resumed", module_lab.folder / "run-recipe.yaml", resume=True)
    assert contents(resumed) == contents(run)
    assert resumed.hidden_leftovers == run.hidden_leftovers


def test_the_weights_of_the_best_step_are_those_of_after(lab):
    """By a criterion that prefers the least trained student, so that the best step is not the last one."""
    section = {"eval_steps": 2, "metric_for_best_model": "cross_entropy", "greater_is_better": True}
    run = lab.run("best", evaluate=section | {"load_best_model_at_end": True})
    assert run.result["best"]["step"] == 2
    assert contents(run)["after"] == contents(run)["step-2"] != contents(run)["step-4"]
