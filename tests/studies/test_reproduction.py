"""`neoplug reproduce` of studies: the summary is computed again from the ledger, and a run is replayed by its id."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from neoplug.studies.halves import half_of
from neoplug.studies.jobs import Identities
from neoplug.studies.worker import Worker

from .conftest import Simulation

PUBLISHED = ("study.json", "ledger.jsonl", "summary.json", "results.csv", "documents.parquet")
STUDY = {
    "axes": {
        "loss": {
            "ce": {"cross_entropy": {"weight": 1}},
            "neo": {"cross_entropy": {"weight": 0.5}, "forward_kl": {"weight": 0.5}},
            "kl": {"forward_kl": {"weight": 1}},
        }
    },
    "seeds": [0, 1, 2, 3, 4],
    "search": {"train.learning_rate": {"values": [1e-3], "seeds": [100]}},
    "contrasts": [{"control": {"loss": "ce"}, "metrics": ["cross_entropy"]}],
}


def write_documents(directory, rows):
    """Write sums of 12 documents for each job, as its worker does."""
    hashes = [f"{number:064x}" for number in range(12)]
    tokens = np.arange(20.0, 32.0)
    for row in rows:
        noise = np.random.default_rng(int(row["id"], 16)).normal(size=12)
        columns = {"document": hashes, "half": [half_of(one) for one in hashes], "tokens": tokens}
        sums = tokens * (row["values"]["cross_entropy"] + 0.1 * noise)
        file = directory / "documents" / f"{row['id']}.parquet"
        file.parent.mkdir(exist_ok=True)
        pd.DataFrame(columns | {"cross_entropy": sums}).to_parquet(file, index=False)


def ledger(directory):
    return [json.loads(line) for line in (directory / "ledger.jsonl").read_text().splitlines()]


def write_ledger(directory, rows):
    (directory / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def complete(module_study_lab):
    """Return the directory of a complete study of simulated runs, in which no rate of one arm can be used."""
    study, folder = module_study_lab.study(**STUDY), module_study_lab.folder / "out"
    identities = Identities(study)
    with pytest.MonkeyPatch.context() as patch:
        simulation = Simulation(patch)

        def diverges(directory, facts):
            changes = {"status": "diverged"} if facts["arm"]["loss"] == "kl" else {}
            return simulation.perform(directory, facts).model_copy(update=changes)

        patch.setattr("neoplug.studies.worker.perform", diverges)
        simulation.run(study, folder, identities=identities)
        write_documents(folder, ledger(folder))
        simulation.run(study, folder, identities=identities)
    (module_study_lab.folder / "study.yaml").unlink()  # as on another machine
    return folder


@pytest.fixture
def directory(complete, tmp_path):
    return shutil.copytree(complete, tmp_path / "study")


def contents(folder):
    return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("names", [None, PUBLISHED], ids=["whole", "published"])
def test_the_summary_is_computed_again_from_the_ledger(neoplug, directory, names):
    for entry in directory.iterdir():
        if names and entry.name not in names:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    before = contents(directory)
    directory.chmod(0o555)
    answer = neoplug("reproduce", directory, "--json")
    directory.chmod(0o755)
    assert (answer.code, answer.json["equal"], answer.json["deviations"]) == (0, True, [])
    assert answer.json["parts"]["contrasts"] == {"lines": 2, "equal": 2}
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["contrasts"][0]["both_noises"]["documents"] > 0
    assert any("kl: 0 of 5 test runs completed (5 failed)" in remark for remark in summary["remarks"])
    assert contents(directory) == before
    assert "Reproduced: the ledger gives the summary, with 2 contrasts." in neoplug("reproduce", directory).out


def test_an_edited_line_is_named_with_what_it_changes(neoplug, directory, tmp_path):
    """One score of five is changed: the estimate changes by a fifth of that."""
    rows = ledger(directory)
    row = next(row for row in rows if row["kind"] == "test" and row["arm"] == {"loss": "neo"})
    row["values"]["cross_entropy"] += 0.25
    write_ledger(directory, rows)
    page = tmp_path / "page.html"
    answer = neoplug("reproduce", directory, "--json", "--report", page)
    assert (answer.code, answer.json["equal"]) == (1, False)
    name = "loss=ce, cross_entropy, neo, ce"
    found = {one["key"]: one for one in answer.json["deviations"] if one["line"] == name}
    assert found["estimate"]["now"] == pytest.approx(found["estimate"]["before"] + 0.05)
    assert answer.json["parts"]["contrasts"] == {"lines": 2, "equal": 1}
    assert name in page.read_text()
    printed = neoplug("reproduce", directory).out
    assert f"contrasts: {name}" in printed
    assert "another summary, in 1 of 2 contrasts" in printed


def test_the_last_digits_are_within_the_tolerance(neoplug, directory):
    """As another version of numpy may give; a millionth is not within."""
    file = directory / "summary.json"
    for factor, code in ((1 + 1e-12, 0), (1 + 1e-6, 1)):
        summary = json.loads(file.read_text())
        summary["contrasts"][0]["p"] *= factor
        file.write_text(json.dumps(summary))
        answer = neoplug("reproduce", directory, "--json")
        assert (answer.code, answer.json["equal"]) == (code, False)
        assert answer.json["deviations"][0]["size"] == pytest.approx(abs(factor - 1), rel=1e-3)


def moved(rows):
    rows[-1]["seed"] = 17


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.pop(), "has no line in the ledger"),
        (moved, "has another arm, kind or seed in the ledger than in the table of results"),
    ],
)
def test_a_line_that_is_missing_or_moved_is_named(neoplug, directory, change, message):
    rows = ledger(directory)
    job = rows[-1]["id"]
    change(rows)
    write_ledger(directory, rows)
    answer = neoplug("reproduce", directory)
    assert answer.code == 1
    assert f"{job} {message}" in answer.out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ledger.jsonl", None, "has no ledger.jsonl"),
        ("ledger.jsonl", '{"id": 1}\n', "has a line 1 that neoplug did not write"),
        ("summary.json", None, "has no summary.json"),
        ("summary.json", '{"contrasts": 1}', "is not what neoplug wrote"),
        ("study.json", "{", "study.json"),
        ("documents.parquet", None, "has neither documents.parquet nor"),
        ("documents.parquet", "PAR1", "is not the table that neoplug wrote"),
    ],
)
def test_what_cannot_be_tried_exits_2(neoplug, directory, name, content, message):
    shutil.rmtree(directory / "documents")
    (directory / name).unlink() if content is None else (directory / name).write_text(content)
    answer = neoplug("reproduce", directory)
    assert (answer.code, message in answer.err) == (2, True)
    assert "fix: " in answer.err


def test_what_is_for_a_replay_is_refused_without_one(neoplug, directory):
    for more in (("seed=1",), ("--output", "again")):
        answer = neoplug("reproduce", directory, *more)
        assert (answer.code, "name one of its runs with --run ID" in answer.err) == (2, True)


def test_a_run_is_replayed_by_its_id(study_lab, neoplug, tmp_path):
    """First from what the study keeps of a removed run, then its directory; at last the ledger is changed."""
    directory, (job,) = study_lab.hand_out(tmp_path / "out", [(1, "test", 3, {"train.learning_rate": 1e-2})])
    folder = directory.path
    (folder / "study.json").write_text(json.dumps(study_lab.study().as_dict()))
    Worker(folder)(job)
    kept = shutil.move(folder / "runs", tmp_path / "runs")
    before = contents(folder)
    answer = neoplug("reproduce", folder, "--run", job, "--output", tmp_path / "again", "--json")
    assert (answer.code, answer.json["equal"], answer.json["differences"]) == (0, True, [])
    assert answer.json["comparison"] == {"steps": 2, "equal": 2, "first": None, "largest": None}
    weights = "adapter/adapter_model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (kept / job / weights).read_bytes()
    assert contents(folder) == before
    (row,) = ledger(folder)
    row["values"]["validation_cross_entropy"] += 0.5
    write_ledger(folder, [row])
    shutil.move(kept, folder / "runs")
    changed = neoplug("reproduce", folder, "--run", job, "--output", tmp_path / "changed", "--json")
    assert changed.code == 1
    first = changed.json["comparison"]["first"]
    assert (first["step"], first["key"]) == ("after", "validation.cross_entropy")
    assert first["before"] == pytest.approx(first["now"] + 0.5)
    assert neoplug("reproduce", folder, "--run", job, "--dry-run").code == 0
    shutil.rmtree(folder / "runs")
    shutil.rmtree(folder / "locks")
    assert "cannot be replayed" in neoplug("reproduce", folder, "--run", job).err


def test_a_run_that_cannot_be_replayed_is_refused_with_the_reason(neoplug, directory, tmp_path):
    rows = ledger(directory)
    unknown = "0" + rows[0]["id"][1:] if rows[0]["id"][0] != "0" else "1" + rows[0]["id"][1:]
    diverged = next(row["id"] for row in rows if row["status"] == "diverged")
    for job, message in ((unknown, f"did you mean `{rows[0]['id']}`?"), (diverged, "why: diverged")):
        answer = neoplug("reproduce", directory, "--run", job)
        assert (answer.code, message in answer.err) == (2, True)
    nothing = neoplug("reproduce", tmp_path, "--run", unknown)
    assert (nothing.code, "is no directory of a study" in nothing.err) == (2, True)
