"""A worker: the row and the sums of a real run, how runs end, and that a worker leaves no trace in the next run."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from neoplug.errors import DiskError, DivergenceError, Interrupted, PluginError, RecipeError, RunError, UsageError
from neoplug.files import read_json
from neoplug.runs.directory import RunDir
from neoplug.studies.halves import half_of
from neoplug.studies.measuring import curve
from neoplug.studies.worker import Worker, outcome

DIVERGED = {"train.learning_rate": 1e12}


def rows(directory):
    ledger = directory.ledger
    ledger.refresh()
    return ledger.rows


@pytest.fixture(scope="module")
def performed(module_study_lab):
    """Return the directory and ids of three runs in one process: two equal ones but for the seed, and one between."""
    lab = module_study_lab
    jobs = [(1, "test", 7, {}), (2, "search", 3, {"train.learning_rate": 1e-2}), (1, "test", 8, {})]
    directory, ids = lab.hand_out(lab.folder / "out", jobs)
    worker = Worker(directory.path)
    for job in ids:
        worker(job)
    return directory, ids


def test_the_row_has_the_measures_of_each_half(performed):
    """Means over the answer tokens of a half's documents, from the run's own sums, by pandas."""
    directory, ids = performed
    for job in ids:
        row = rows(directory)[job]
        sums = pd.read_parquet(directory.run(job) / "evaluation" / "after.parquet")
        sums["half"] = sums["document"].map(half_of)
        means = sums.groupby("half")[["cross_entropy", "forward_kl", "entropy"]].sum()
        means = means.div(sums.groupby("half")["tokens"].sum(), axis=0)
        for name in means:
            assert row.values[name] == pytest.approx(means.loc["test", name], rel=1e-12)
            assert row.values[f"validation_{name}"] == pytest.approx(means.loc["validation", name], rel=1e-12)
        assert row.values["perplexity"] == pytest.approx(np.exp(means.loc["test", "cross_entropy"]))
        documents = pd.read_parquet(directory.documents(job))
        pd.testing.assert_frame_equal(documents[sums.columns], sums)


def test_the_row_has_the_references_and_the_costs_of_the_run(performed):
    directory, ids = performed
    row, result = rows(directory)[ids[0]], RunDir(directory.run(ids[0])).result
    tokens = pd.read_parquet(directory.documents(ids[0])).groupby("half")["tokens"].sum()
    for name, expected in (("untrained", result.before), ("teacher", result.teacher)):
        found = row.references[name]
        halves = found["cross_entropy"] * tokens["test"] + found["validation_cross_entropy"] * tokens["validation"]
        assert halves / tokens.sum() == pytest.approx(expected["cross_entropy"], rel=1e-12)
    costs = ("trainable_parameters", "total_parameters", "steps", "tokens", "answer_tokens", "seconds")
    assert {name: getattr(row, name) for name in costs} == {name: getattr(result, name) for name in costs}
    assert row.run == f"runs/{ids[0]}"
    assert not directory.job(ids[0]).exists()


def test_the_row_has_the_learning_curve(performed):
    directory, ids = performed
    steps = pd.read_json(directory.run(ids[0]) / "metrics.jsonl", lines=True)
    curve = pd.DataFrame(rows(directory)[ids[0]].curve)
    assert list(curve["tokens"]) == list(steps["tokens"].cumsum())
    assert list(curve["loss"]) == list(steps["loss"])


def test_a_long_learning_curve_is_thinned():
    """Of 1,000 steps every ninth is in the ledger, at the tokens that were trained on by then."""
    thinned = curve([{"step": at, "tokens": 10, "answer_tokens": 9, "loss": 1 / at} for at in range(1, 1001)])
    assert thinned["tokens"] == [10 * at for at in range(1, 1001, 9)]
    assert thinned["loss"] == [1 / at for at in range(1, 1001, 9)]


def test_a_job_that_is_done_is_not_repeated(performed):
    directory, ids = performed
    before, at = (directory.path / "ledger.jsonl").read_bytes(), directory.run(ids[0]).stat().st_mtime_ns
    Worker(directory.path)(ids[0])
    assert (directory.path / "ledger.jsonl").read_bytes() == before
    assert directory.run(ids[0]).stat().st_mtime_ns == at


def test_trackers_group_the_runs_of_a_study(study_lab, tmp_path, monkeypatch):
    from neoplug_trackers.tensorboard import TensorBoard

    groups, make = [], TensorBoard.make
    monkeypatch.setattr(TensorBoard, "make", lambda *given: groups.append(given[-1]) or make(*given))
    base = {"extends": "base.yaml", "report_to": "tensorboard"}
    directory, (job,) = study_lab.hand_out(tmp_path / "out", [(0, "test", 1, {})], base=base, name="robust")
    Worker(directory.path)(job)
    assert rows(directory)[job].status == "completed"
    assert groups == ["robust"]


def test_a_job_that_is_not_handed_out_is_an_error(performed):
    with pytest.raises(UsageError, match="has handed out no job 0123"):
        Worker(performed[0].path)("0123")


def in_a_fresh_process(directory, job):
    command = [sys.executable, "-m", "neoplug.studies.worker", str(directory.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdin.write(f"{job}\n")
        process.stdin.flush()
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "ready\n"]
        process.stdin.close()
    return directory.run(job)


def contents(run):
    """Return what a run wrote, but for clocks and memory."""
    clock = ("seconds", "tokens_per_second", "peak_memory_bytes")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines.append(json.loads((run / "result.json").read_text()))
    facts = [{key: value for key, value in line.items() if key not in clock} for line in lines]
    files = [*(run / "evaluation").iterdir(), *(run / "adapter").glob("*.safetensors")]
    return facts, {file.relative_to(run).as_posix(): file.read_bytes() for file in files}


def test_a_later_run_of_a_worker_equals_that_of_a_fresh_process(performed, module_study_lab):
    """Bit for bit: metrics, sums, weights; and its memory is its own."""
    directory, ids = performed
    fresh, again = module_study_lab.hand_out(module_study_lab.folder / "fresh", [(1, "test", 8, {})])
    assert again == ids[2:]
    assert contents(in_a_fresh_process(fresh, ids[2])) == contents(directory.run(ids[2]))
    same = ("values", "references", "trainable_parameters", "tokens")
    found = [{name: getattr(rows(each)[ids[2]], name) for name in same} for each in (fresh, directory)]
    assert found[0] == found[1]


def test_a_run_that_diverges_is_a_row(module_study_lab):
    directory, (job,) = module_study_lab.hand_out(module_study_lab.folder / "diverged", [(0, "search", 1, DIVERGED)])
    Worker(directory.path)(job)
    row = rows(directory)[job]
    assert row.status == "diverged"
    assert "is nan" in row.reason or "is inf" in row.reason or "is not finite" in row.reason
    assert row.values == {} or "cross_entropy" not in row.values


def test_a_recipe_that_does_not_fit_is_a_row(module_study_lab):
    lora = {"lora": {"r": 4, "target_modules": ["no_such_module"]}}
    axes = {"adapter": {"good": {"lora": {"r": 4}}, "bad": lora}}
    directory, (job,) = module_study_lab.hand_out(module_study_lab.folder / "refused", [(1, "test", 1, {})], axes=axes)
    Worker(directory.path)(job)
    row = rows(directory)[job]
    assert row.status == "refused"
    assert "no_such_module" in row.reason
    assert row.run == ""


def raised(error, cause=None):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DivergenceError("step 3: loss is nan"), "diverged"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (PluginError("lora", "add_adapter", MemoryError()), "failed"),
        (raised(PluginError("lora", "add_adapter", MemoryError()), MemoryError()), "out_of_memory"),
        (raised(RunError("lost"), DivergenceError("step 3")), "diverged"),
        (RunError("the student cannot be saved"), "failed"),
        (ValueError("anything"), "failed"),
        (RecipeError([]), "refused"),
        (UsageError("no such device"), "refused"),
    ],
    ids=repr,
)
def test_how_a_run_ended(error, status):
    found, reason = outcome(error)
    assert found == status
    assert str(error) in reason


def test_torch_is_out_of_memory_on_a_cpu():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert outcome(caught.value)[0] == "out_of_memory"


@pytest.mark.parametrize("error", [Interrupted(15, "stopped"), DiskError("x", "full")], ids=repr)
def test_what_is_no_result_is_no_row(study_lab, tmp_path, monkeypatch, error):
    directory, (job,) = study_lab.hand_out(tmp_path / "out", [(0, "test", 1, {})])

    def ends(*_):
        raise error

    monkeypatch.setattr("neoplug.studies.worker._run", ends)
    with pytest.raises(type(error)):
        Worker(directory.path)(job)
    assert rows(directory) == {}
    assert directory.job(job).exists()


def test_a_killed_run_goes_on_from_its_checkpoint(module_study_lab, performed):
    """SIGKILL after the first checkpoint; the result is that of an undisturbed run."""
    lab = module_study_lab
    directory, (job,) = lab.hand_out(lab.folder / "killed", [(1, "test", 7, {})])
    command = [sys.executable, "-m", "neoplug.studies.worker", str(directory.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        process.stdin.write(f"{job}\n")
        process.stdin.flush()
        while not (directory.run(job) / "checkpoints" / "step-1").exists():
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    assert rows(directory) == {}
    Worker(directory.path)(job)
    undisturbed, ids = performed
    assert rows(directory)[job].values == rows(undisturbed)[ids[0]].values
    assert contents(directory.run(job))[1] == contents(undisturbed.run(ids[0]))[1]


@pytest.mark.parametrize("damaged", ["recipe.yaml", "metrics.jsonl"])
def test_a_run_that_cannot_go_on_begins_again(module_study_lab, performed, tmp_path, damaged):
    """The machine was cut off while the run wrote."""
    directory, (job,) = module_study_lab.hand_out(tmp_path / "out", [(1, "test", 7, {})])
    undisturbed, ids = performed
    import shutil

    shutil.copytree(undisturbed.run(ids[0]), directory.run(job))
    shutil.rmtree(directory.run(job) / "adapter")
    (directory.run(job) / damaged).write_text("{", encoding="utf-8")
    Worker(directory.path)(job)
    assert rows(directory)[job].values == rows(undisturbed)[ids[0]].values


def test_the_handed_out_recipe_gives_no_consent_to_code(study_lab, tmp_path):
    directory, (job,) = study_lab.hand_out(tmp_path / "out", [(0, "test", 1, {})])
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    facts = read_json(directory.job(job), "")
    facts["recipe"]["adapter"] = {f"{tmp_path}/evil.py:Evil": {}}
    directory.hand_out(facts)
    Worker(directory.path)(job)
    assert rows(directory)[job].status == "refused"
    assert "that you have not trusted" in rows(directory)[job].reason
