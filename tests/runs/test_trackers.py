"""Values sent to trackers, read back with their own libraries, equal those of metrics.jsonl and result.json."""

import json
import subprocess
import sys
from time import sleep

import pytest

from neoplug.errors import RecipeError
from neoplug.runs.trackers import Trackers

READ = """
import json
from trackio.sqlite_storage import SQLiteStorage
print(json.dumps(SQLiteStorage.get_logs("neoplug", "run")))
"""


def recorded(path):
    """Return {name: {step: value}} of the scalars in a folder of TensorBoard events."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path)).Reload()
    return {name: {event.step: event.value for event in events.Scalars(name)} for name in events.Tags()["scalars"]}


def test_tensorboard_shows_the_run(lab):
    run = lab.run(
        "run", report_to="tensorboard", train={"max_steps": 4, "logging_steps": 2}, evaluate={"eval_steps": 2}
    )
    found = recorded(run.path / "tensorboard")
    for name in ("loss", "learning_rate", "grad_norm", "tokens"):
        assert found[name] == pytest.approx({line["step"]: line[name] for line in run.lines})
    assert found["losses/forward_kl"] == pytest.approx({n["step"]: n["losses"]["forward_kl"] for n in run.lines})
    assert found["diagnostics/teacher_entropy"].keys() == {2, 4}
    expected = {0: run.result["before"], 2: run.result["evaluations"][0], 4: run.result["after"]}
    assert found["held_out/jsd"] == pytest.approx({step: measured["jsd"] for step, measured in expected.items()})
    assert found["teacher/entropy"] == pytest.approx({0: run.result["teacher"]["entropy"]})


@pytest.mark.slow
def test_trackio_shows_the_run(lab, tmp_path, monkeypatch):
    """In a separate process: trackio reads its output folder when it is imported."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    recipe = lab.recipe(report_to=["trackio"], train={"max_steps": 2, "logging_steps": 1})
    command = [sys.executable, "-m", "neoplug", "run", str(recipe), "--output", str(lab.folder / "run")]
    subprocess.run(command, check=True, capture_output=True)
    run = lab.at("run")
    for _ in range(20):  # trackio's server may still be writing after the run has ended
        done = subprocess.run([sys.executable, "-c", READ], capture_output=True, text=True, check=True)
        logs = json.loads(done.stdout.splitlines()[-1])
        if any("held_out/forward_kl" in entry and entry["step"] == 2 for entry in logs):
            break
        sleep(1)
    losses = {entry["step"]: entry["loss"] for entry in logs if "loss" in entry}
    assert losses == pytest.approx({line["step"]: line["loss"] for line in run.lines})
    divergences = {entry["step"]: entry["held_out/forward_kl"] for entry in logs if "held_out/forward_kl" in entry}
    assert divergences == pytest.approx({0: run.result["before"]["forward_kl"], 2: run.result["after"]["forward_kl"]})


@pytest.mark.parametrize(
    ("name", "maker", "option"),
    [
        ("trackio", "TrackioTracker", {"group": "robust"}),
        ("wandb", "WandBTracker", {"group": "robust"}),
        ("mlflow", "MLflowTracker", {"tags": {"group": "robust"}}),
    ],
)
def test_a_run_belongs_to_a_group(tmp_path, monkeypatch, name, maker, option):
    made = []

    class Tracker:
        def __init__(self, *_, **options):
            made.append(options)

        def start(self):
            pass

        def store_init_configuration(self, values):
            pass

    monkeypatch.setattr(f"accelerate.tracking.{maker}", Tracker, raising=False)
    assert list(Trackers([name], tmp_path, {}, "robust").running) == [name]
    assert option.items() <= made[0].items()


def test_a_tracker_that_fails_ends_no_run(lab, monkeypatch):
    from accelerate.tracking import TensorBoardTracker

    def log(self, values, step):
        raise OSError("the disk of the tracker is full")

    monkeypatch.setattr(TensorBoardTracker, "log", log)
    run = lab.run("run", report_to="tensorboard", train={"max_steps": 2})
    assert run.result["status"] == "completed"
    notes = (run.path / "log.txt").read_text()
    assert notes.count("WARNING tensorboard is left out from here on: OSError: the disk of the tracker is full") == 1


@pytest.mark.parametrize(
    ("report_to", "message"),
    [
        ("tensorbord", "did you mean `tensorboard`?"),
        (["none"], "must be tensorboard"),
        ("mlflow", "not installed"),
    ],
)
def test_an_unknown_or_missing_tracker_is_refused(lab, monkeypatch, report_to, message):
    monkeypatch.setattr("neoplug.recipe.schema.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="report_to") as caught:
        lab.run("run", report_to=report_to)
    assert message in str(caught.value)


def test_all_selects_the_installed_trackers(monkeypatch):
    from neoplug.recipe import Recipe

    monkeypatch.setattr("neoplug.recipe.schema.find_spec", lambda name: name == "trackio" or None)
    recipe = Recipe(student={"model": "x"}, data={"source": "y"}, report_to="all")
    assert recipe.trackers == ["trackio"]
