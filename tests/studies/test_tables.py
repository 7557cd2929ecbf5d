"""The tables of a study, the folders that it keeps, and its Python interface."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from pyarrow import parquet

import neoplug
from neoplug.errors import RecipeError
from neoplug.studies.arms import Arm
from neoplug.studies.directory import StudyDir
from neoplug.studies.jobs import Job
from neoplug.studies.keeping import Keeper
from neoplug.studies.ledger import Row
from neoplug.studies.tables import documents_of, references_of, results_of, write_tables

AXES = {"loss": {"ce": {"cross_entropy": {"weight": 1}}, "kl": {"forward_kl": {"weight": 1}}}}


def job(number, loss="ce", kind="test", seed=0, **trial):
    return Job(f"id{number}", Arm({"loss": loss, "r": "8"}), kind, seed, trial)


def row(of, status="completed", **more):
    return Row(**of.as_dict(), status=status, version="0", finished="2026-01-01", **more)


RATE = "train.learning_rate"
SEARCHED = [
    job(number, "ce", "search", 100 + seed, **{RATE: rate, "train.warmup_steps": 3})
    for number, (rate, seed) in enumerate([(1e-3, 0), (1e-3, 1), (1e-2, 0), (1e-2, 1)])
]
TESTED = [job(10, seed=0, **{RATE: 1e-3, "train.warmup_steps": 3}), job(11, seed=1), job(12, "kl", seed=0)]
VALUES = {"cross_entropy": 2.0, "validation_cross_entropy": 3.0, "forward_kl": 0.5, "probes.arc.accuracy": 0.25}


@pytest.fixture
def done(tmp_path):
    """Return pairs of jobs and rows; the run of one test job still has its folder."""
    (tmp_path / "runs" / "id10").mkdir(parents=True)
    rows = [row(each, values=VALUES, run=f"runs/{each.id}", tokens=10, seconds=1.5) for each in SEARCHED + TESTED[:1]]
    rows += [row(TESTED[1], "diverged", reason="step 3:\nloss is nan"), row(TESTED[2], "failed", reason="lost")]
    return list(zip([*SEARCHED, *TESTED], rows, strict=True))


def test_results_have_a_row_a_job_and_the_named_columns(tmp_path, done):
    write_tables(StudyDir(tmp_path), done, {"kl/8": 5e-4})
    csv = pd.read_csv(tmp_path / "results.csv")
    frame = pd.read_parquet(tmp_path / "results.parquet")
    first = ["loss", "r", "seed", "kind", "status", "reason", "trials", "learning_rate", "warmup_steps"]
    assert list(csv) == list(frame)
    assert list(csv)[: len(first)] == first
    assert set(csv) >= {*VALUES, "trainable_parameters", "seconds", "tokens", "run"}
    assert len(csv) == len(done)
    assert list(csv["trials"]) == [2, 2, 2, 2, 2, 2, 0]
    assert list(csv["learning_rate"].dropna()) == [1e-3, 1e-3, 1e-2, 1e-2, 1e-3, 5e-4]
    assert list(csv["run"].dropna()) == ["runs/id10"]
    assert list(csv["status"])[-3:] == ["completed", "diverged", "failed"]
    assert csv["reason"].iloc[-2] == "step 3:\nloss is nan"
    assert str(frame["tokens"].dtype) == "Int64"
    assert "10.0" not in (tmp_path / "results.csv").read_text()


def test_the_test_half_of_a_search_is_in_no_table(done, tmp_path):
    frame = results_of(StudyDir(tmp_path), done, {})
    searched = frame[frame["kind"] == "search"]
    assert searched[["cross_entropy", "forward_kl", "probes.arc.accuracy"]].isna().all(axis=None)
    assert (searched["validation_cross_entropy"] == 3.0).all()
    assert frame[frame["id"] == "id10"]["cross_entropy"].item() == 2.0


def test_an_empty_study_has_empty_tables(tmp_path):
    write_tables(StudyDir(tmp_path), [], {})
    assert not (tmp_path / "documents.parquet").exists()
    assert (tmp_path / "results.csv").exists()


def test_ten_thousand_rows_are_listed(tmp_path):
    pairs = [(each, row(each, values=VALUES)) for each in (job(number, seed=number) for number in range(10_000))]
    frame = results_of(StudyDir(tmp_path), pairs, {})
    assert list(frame["seed"]) == list(range(10_000))


def test_references_are_those_of_the_first_run_of_each_arm():
    references = {"untrained": {"cross_entropy": 5.0}, "teacher": {"cross_entropy": 1.0, "validation_entropy": 2.0}}
    first, second = job(1), job(2, seed=1)
    frame = references_of([(first, row(first, references=references)), (second, row(second))])
    assert list(frame["reference"]) == ["untrained", "teacher"]
    assert list(frame["cross_entropy"]) == [5.0, 1.0]
    assert frame["validation_entropy"].isna().tolist() == [True, False]


@pytest.mark.parametrize(("rule", "left"), [("all", "abcde"), ("none", ""), ("best", "bd")])
def test_which_folders_are_kept(tmp_path, rule, left):
    """Of `ce` b is the best, of `kl` d; a smaller cross-entropy is better, and of equal ones the first."""
    directory, scores = StudyDir(tmp_path), {"a": 3.0, "b": 1.0, "c": 1.0, "d": 2.0, "e": 0.5}
    keeper = Keeper(directory, rule, "cross_entropy")
    for number, (name, score) in enumerate(scores.items()):
        each = Job(name, Arm({"loss": "kl" if name == "d" else "ce"}), "search" if name == "e" else "test", number, {})
        directory.run(name).mkdir(parents=True)
        keeper.apply(each, row(each, values={"validation_cross_entropy": score}, run=f"runs/{name}"))
    assert "".join(sorted(folder.name for folder in (tmp_path / "runs").iterdir())) == left


def test_the_log_of_a_run_that_failed_is_kept(tmp_path):
    directory, failed = StudyDir(tmp_path), job(1)
    directory.run("id1").mkdir(parents=True)
    (directory.run("id1") / "log.txt").write_text("traceback")
    Keeper(directory, "best", "cross_entropy").apply(failed, row(failed, "failed", run="runs/id1"))
    assert not directory.run("id1").exists()
    assert (tmp_path / "logs" / "id1.txt").read_text() == "traceback"


@pytest.fixture(scope="module")
def killed(module_study_lab):
    """Return a study of two arms and two seeds: its process was killed after the first line; then it went on."""
    file = module_study_lab.file("real", axes=AXES, search=None, executor={"local": {}}, keep="all")
    folder = module_study_lab.folder / "real"
    ledger = folder / "ledger.jsonl"
    command = [sys.executable, "-m", "neoplug", "study", str(file), "--output", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (ledger.exists() and ledger.read_bytes().count(b"\n") >= 1) and process.poll() is None:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    before = ledger.read_bytes()
    status = subprocess.run([*command[:4], folder, "--status", "--json"], capture_output=True, text=True, check=True)
    return folder, before, json.loads(status.stdout), neoplug.study(file, output=folder)


def test_a_study_whose_process_was_killed_goes_on(killed):
    folder, before, _, result = killed
    lines = (folder / "ledger.jsonl").read_bytes()
    assert lines.startswith(before)
    assert lines.count(b"\n") == 4
    assert result.left == 0
    assert list(result.results["status"]) == ["completed"] * 4
    assert list(zip(result.results["loss"], result.results["seed"], strict=True)) == [
        ("ce", 0), ("ce", 1), ("kl", 0), ("kl", 1)
    ]  # fmt: skip


def test_the_status_of_a_killed_study(killed):
    _, _, status, _ = killed
    assert (status["at_work"], status["expected"], status["running"]) == (False, 4, [])


def test_the_tables_agree_with_the_runs(killed):
    """The measures of the test half, by pandas, from the sums that each run wrote."""
    folder, _, _, result = killed
    documents = result.documents
    assert set(documents["half"]) == {"validation", "test"}
    for _, line in result.results.iterrows():
        sums = pd.read_parquet(folder / line["run"] / "evaluation" / "after.parquet")
        mine = documents[documents["id"] == line["id"]]
        assert (mine[["loss", "seed", "kind"]].drop_duplicates().values == line[["loss", "seed", "kind"]].values).all()
        pd.testing.assert_frame_equal(mine[list(sums)].reset_index(drop=True), sums)
        test = mine[mine["half"] == "test"]
        assert line["cross_entropy"] == pytest.approx(test["cross_entropy"].sum() / test["tokens"].sum(), rel=1e-12)
    assert result.results["learning_rate"].eq(1e-3).all()
    assert set(result.references["reference"]) == {"untrained", "teacher"}


def test_the_study_has_a_lock(killed):
    lock = json.loads((killed[0] / "study.lock.json").read_text())
    assert lock["version"] == neoplug.__version__
    assert lock["contents"]


def test_documents_of_a_search_have_the_validation_half_alone(killed):
    folder = killed[0]
    done = StudyDir(folder).ledger
    done.refresh()
    pairs = [(Job(each.id, Arm(each.arm), "search", each.seed, {}), each) for each in done.rows.values()]
    table = documents_of(StudyDir(folder), pairs)
    assert set(table["half"].to_pylist()) == {"validation"}
    whole = parquet.read_table(folder / "documents.parquet")
    assert table.num_rows == sum(half == "validation" for half in whole["half"].to_pylist())


def test_a_half_without_documents_is_refused_before_the_first_run(study_lab, tmp_path):
    file = study_lab.file(axes=AXES, search=None)
    with pytest.raises(RecipeError, match=r"1 document is held out(?s:.)*fix: hold out more documents"):
        neoplug.study(file, output=tmp_path / "out", data={"held_out": 1})
    assert not (tmp_path / "out" / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "executor"), [("submitit", {"slurm": {"cluster": "local", "timeout_min": 10}}), ("ray", {"ray": {}})]
)
def test_another_executor_measures_the_same(killed, module_study_lab, tmp_path, home_of_ray, package, executor):
    """Bit for bit, on this machine: submitit's local executor, and a cluster of Ray that is started for the study."""
    pytest.importorskip(package, reason="the extra of this executor is not installed")
    file = module_study_lab.file("other", axes=AXES, search=None, seeds=[1], executor=executor)
    found, expected = neoplug.study(file, output=tmp_path / "out").results, killed[-1].results
    same = [name for name in expected if name not in ("seconds", "peak_memory_bytes", "run")]
    pd.testing.assert_frame_equal(found[same], expected[expected["seed"] == 1][same].reset_index(drop=True))
