"""`study`: what it prints of a study before, while and after it runs."""

import io
import json
import re

import pytest
import yaml

from neoplug.cli import study_watch
from neoplug.cli.study import print_summary
from neoplug.studies.directory import StudyDir
from neoplug.studies.ledger import Row
from neoplug.studies.report.material import read_material
from neoplug.studies.status import State
from tests.studies.written import write_small_study

RUNNING = [{"job": "0", "label": "lora, seed 1", "since": 40.0}]
STATE = State("robust", "search", 1200, {"completed": 1000, "out_of_memory": 2}, RUNNING, 3700.0)


@pytest.fixture
def study_file(recipe, tmp_path):
    """Return a study file of two arms and one seed, whose jobs are printed."""
    file = tmp_path / "robust.yaml"
    sections = {
        "base": "tiny.yaml",
        "axes": {"loss": {"ce": {"cross_entropy": {"weight": 1}}, "kl": {"forward_kl": {"weight": 1}}}},
        "seeds": [0],
        "metrics": {"cross_entropy": {}},
        "executor": {"print": {}},
    }
    file.write_text(yaml.safe_dump(sections, sort_keys=False), encoding="utf-8")
    return file


def test_printed_jobs_are_run_one_by_one(neoplug, study_file, tmp_path):
    """The whole way: commands, their runs, the status, and the result of the study when nothing is left."""
    folder, size = tmp_path / "out", ("data.held_out=8", "train.num_train_epochs=null", "train.max_steps=1")
    first = neoplug("study", study_file, *size, "--output", folder)
    assert first.code == 0, first.err
    commands = first.out.splitlines()
    assert len(commands) == 2
    for number, command in enumerate(commands):
        words = command.split()
        assert words[:2] == ["neoplug", "study"]
        ran = neoplug(*words[1:])
        assert ran.code == 0, ran.err
        assert ran.out == f"{words[-1]}: completed\n"
        status = json.loads(neoplug("study", folder, "--status", "--json").out)
        assert (status["expected"], status["counts"], status["at_work"]) == (2, {"completed": number + 1}, False)
    last = neoplug("study", folder)  # the study file and the overrides are known
    assert last.code == 0, last.err
    table = [line.split() for line in last.out.splitlines()]
    (result,) = [words for words in table if words[:2] == ["kl", "1/1"]]
    assert re.fullmatch(r"\d\.\d{4}", result[2])
    assert "complete: 2 of 2 jobs are done" in last.err
    assert neoplug("study", folder).out == last.out
    rows = json.loads(neoplug("study", folder, "--json").out)["results"]
    assert [row["loss"] for row in rows] == ["ce", "kl"]
    assert "robust, complete: 2 of 2" in neoplug("study", folder, "--status").out


def test_a_dry_run_says_what_the_study_costs_and_writes_nothing(neoplug, study_file, tmp_path):
    answer = neoplug("study", study_file, "data.held_out=8", "--output", tmp_path / "out", "--dry-run")
    assert answer.code == 0, answer.err
    assert "2 arms; 0 runs to search, at most 0 to extend the search, 2 to test; 0 are done" in answer.out
    assert re.search(r"a run, from 3 steps of ce\n", answer.out)
    assert re.search(r"memory a run at most\n.*disk, with `keep: best`", answer.out)
    assert not (tmp_path / "out").exists()


def test_a_study_that_does_not_fit_is_refused(neoplug, study_file, tmp_path, monkeypatch):
    from neoplug.studies import estimate
    from neoplug.studies.executors.local import Device

    text = study_file.read_text().replace("print: {}", "local: {}")
    study_file.write_text(text, encoding="utf-8")
    monkeypatch.setattr(estimate, "devices", lambda: [Device(1000)])
    monkeypatch.setattr(estimate, "_seconds", lambda *_: ({"ce": 1.0, "kl": 2.0}, "a guess"))
    answer = neoplug("study", study_file, "data.held_out=8", "--output", tmp_path / "out", "--dry-run")
    assert answer.code == 2
    assert "a run of ce needs about 0.6 GB of memory" in answer.err
    assert "fix: " in answer.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_study"], "there is no study `no_such_study`"),
        (["FOLDER", "--status"], "is no directory of a study"),
        (["FOLDER", "--job", "0123"], "is no directory of a study"),
    ],
)
def test_mistakes_are_refused(neoplug, tmp_path, arguments, message):
    answer = neoplug("study", *[word.replace("FOLDER", str(tmp_path)) for word in arguments])
    assert answer.code == 2
    assert message in answer.err
    assert "fix: " in answer.err


def test_a_study_that_has_not_begun_has_no_status(neoplug, tmp_path):
    (tmp_path / "study.json").write_text("{}")
    answer = neoplug("study", tmp_path, "--status")
    assert answer.code == 2
    assert "has not begun" in answer.err


def test_comparisons_are_printed_with_their_answer(tmp_path, capsys):
    """Smaller is better: all differences, and both ends of their intervals, are below 0."""
    summary = read_material(write_small_study(tmp_path / "study", search=False, curves=False)).summary
    print_summary(summary)
    printed = capsys.readouterr().out
    assert "loss=ce, cross_entropy: robust yes (of 2 gains: 2 above 0)" in printed
    for line in summary.contrasts:
        ends = ", ".join(f"{end:.3f}".replace("-", "\u2212") for end in line.interval)
        assert max(line.interval) < 0
        assert f"{line.arm} - {line.control}" in printed
        assert f"[{ends}]" in printed.replace("\u00a0", " ")


def test_the_state_in_lines(monkeypatch):
    monkeypatch.setattr(study_watch.time, "time", lambda: 100.0)
    assert study_watch.lines(STATE) == [
        "robust, search: 1,002 of 1,200 jobs are done, 1:01:40 left",
        "  1,000 completed, 2 out of memory",
        "running: 1",
        "  lora, seed 1, for 1:00",
    ]


def test_lines_are_printed_for_phases_and_ended_jobs(capsys):
    lines = study_watch.Lines()
    for _ in range(2):
        lines.update(STATE)
    row = {"id": "0", "arm": {}, "kind": "test", "seed": 1, "trial": {}, "version": "0", "finished": ""}
    lines.ended(Row(**row, status="completed", seconds=61.0), "lora, seed 1")
    lines.ended(Row(**row, status="failed", reason="bad\nnews\x1b[0m"), "lora, seed 2")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "robust, search: 1,002 of 1,200 jobs are done, 1:01:40 left",
        "lora, seed 1: completed in 1:01",
        "lora, seed 2: failed: bad",
    ]


def test_a_terminal_shows_a_live_table(monkeypatch):
    from rich.console import Console

    screen = io.StringIO()
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("rich.console.Console", lambda **options: Console(file=screen, force_terminal=True, width=80))
    with study_watch.watching() as table:
        table.update(STATE)
    assert "robust, search: 1,002 of 1,200" in screen.getvalue()
    assert "lora, seed 1" in screen.getvalue()


def test_the_status_needs_no_study_file(neoplug, study_file, tmp_path):
    directory = StudyDir.create(tmp_path / "out")
    (directory.path / "study.json").write_text(json.dumps({"file": "gone.yaml", "overrides": []}))
    directory.status_file.write_text(json.dumps(vars(STATE)))
    answer = neoplug("study", directory.path, "--status")
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[-1] == "no process is at work on it"
    assert "running" not in answer.out
