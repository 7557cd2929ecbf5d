"""Values sent to trackers, read back with their own libraries, equal those of metrics.jsonl and result.json."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from time import sleep

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neoplug import hookimpl, recipe
from neoplug.errors import PluginError, RecipeError
from neoplug.registry import Plugins, find
from neoplug.registry.nested import numbers
from neoplug.runs.metrics_file import finite
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
    file = lab.recipe(report_to=["trackio"], train={"max_steps": 2, "logging_steps": 1})
    command = [sys.executable, "-m", "neoplug", "run", str(file), "--output", str(lab.folder / "run")]
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
        def __init__(self, *given, **options):
            made.append((given, options))

        def start(self):
            pass

        def store_init_configuration(self, values):
            made.append(values)

    monkeypatch.setattr(f"accelerate.tracking.{maker}", Tracker, raising=False)
    plugins = Plugins({"trackers": {name: find(name, tmp_path).load()()}})
    Trackers(plugins).open(tmp_path, {"loss": {"jsd": {"beta": 0.5}}, "probes": {}, "seeds": [1]}, "robust")
    (given, options), config = made
    assert option.items() <= options.items()
    assert given == ("neoplug",)
    assert config == {"loss/jsd/beta": 0.5, "seeds": "[1]"}


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


def test_all_selects_the_installed_trackers_that_the_section_does_not_name(lab, monkeypatch):
    monkeypatch.setattr("neoplug.recipe.shorthands.find_spec", lambda name: name in ("tensorboard", "trackio") or None)
    checked = recipe.load(lab.recipe(report_to="all", trackers={"trackio": {"project": "mine"}}))
    assert list(checked.plugins.section("trackers")) == ["tensorboard", "trackio"]
    assert checked.plugins.section("trackers")["trackio"].project == "mine"
    assert checked.resolved()["trackers"] == {"trackio": {"project": "mine"}}
    again = recipe.load(lab.recipe("again", **{key: checked.resolved()[key] for key in ("report_to", "trackers")}))
    assert list(again.plugins.section("trackers")) == ["tensorboard", "trackio"]


def test_a_tracker_of_the_section_needs_its_package(lab, monkeypatch):
    monkeypatch.setattr("neoplug_trackers.accelerate_tracker.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"recipe\.yaml:\d+:\d+: the package wandb is not installed") as caught:
        recipe.load(lab.recipe(trackers={"wandb": {}}))
    assert "fix: `pip install wandb`" in str(caught.value)


OWN = """
import json

@dataclass(eq=False)
class Own:
    calls: list = field(default_factory=list, init=False)

    @hookimpl
    def open_tracker(self, path, config, group):
        self.folder = path / "trackers" / "own"
        self.folder.mkdir(parents=True)
        self.record("open_tracker", [path.name, config["seed"], group])

    @hookimpl
    def on_log(self, line):
        self.record("on_log", line)
        line.clear()

    @hookimpl
    def on_measured(self, step, measured, whose):
        self.record("on_measured", [step, measured, whose])
        measured.clear()

    @hookimpl
    def close_tracker(self):
        self.record("close_tracker", None)

    def record(self, hook, value):
        self.calls.append(json.loads(json.dumps([hook, value])))
        (self.folder / "calls.json").write_text(json.dumps(self.calls))
"""


def calls_of(run):
    return json.loads((run.path / "trackers" / "own" / "calls.json").read_text())


def test_a_tracker_in_a_file_gets_each_line_and_each_evaluation_once(lab):
    """It also writes into what it gets, which changes nothing for the run."""
    lab.plugin("own", OWN)
    sections = {"train": {"max_steps": 4, "logging_steps": 2}, "evaluate": {"eval_steps": 2}, "seed": 5}
    run = lab.run("run", trackers={"./own.py:Own": {}}, **sections)
    result, calls = run.result, calls_of(run)
    expected = [["open_tracker", ["run", 5, None]], ["on_measured", [0, result["before"], "student"]]]
    expected += [["on_measured", [0, result["teacher"], "teacher"]], *(["on_log", line] for line in run.lines[:2])]
    evaluation = {key: value for key, value in result["evaluations"][0].items() if key != "step"}
    expected += [["on_measured", [2, evaluation, "student"]], *(["on_log", line] for line in run.lines[2:])]
    assert calls == [*expected, ["on_measured", [4, result["after"], "student"]], ["close_tracker", None]]


def test_a_run_that_fails_closes_its_trackers(lab):
    lab.plugin("own", OWN)
    lab.plugin("fails", "@dataclass(eq=False)\nclass Fails:\n    @hookimpl\n    def edit_batch(self):\n        1 / 0\n")
    with pytest.raises(PluginError):
        lab.run("run", trackers={"./own.py:Own": {}}, treatments={"./fails.py:Fails": {}})
    assert calls_of(lab.at("run"))[-1] == ["close_tracker", None]
    assert lab.run("run", train={"max_steps": 1}).result["status"] == "completed"  # its directory is used again


ODD = """
@dataclass(eq=False)
class Odd:
    @hookimpl
    def on_step_end(self, step):
        return {"odd": float("nan") if step == 1 else float("inf")}

    @hookimpl
    def on_evaluate(self):
        return {"odd": float("-inf")}
"""


def test_a_number_that_is_not_finite_is_none_as_in_the_files_of_the_run(lab):
    lab.plugin("own", OWN)
    lab.plugin("odd", ODD)
    probes = {"./odd.py:Odd": {}}
    run = lab.run("run", trackers={"./own.py:Own": {}}, probes=probes, train={"max_steps": 2, "logging_steps": 1})
    calls = calls_of(run)
    assert [line["odd"] for hook, line in calls if hook == "on_log"] == [None, None] == [n["odd"] for n in run.lines]
    measured = [shown[1] for hook, shown in calls if hook == "on_measured"]
    assert measured == [run.result["before"], run.result["teacher"], run.result["after"]]
    assert all(list(one["probes"].values()) == [{"odd": None}] for one in measured)


@dataclass(eq=False)
class Records:
    """Records the names of the hooks that are called; one of them fails."""

    fails_in: str = ""
    answer: object = None
    called: list = field(default_factory=list)

    @hookimpl
    def open_tracker(self):
        return self.record("open_tracker")

    @hookimpl
    def on_log(self):
        return self.record("on_log")

    @hookimpl
    def on_measured(self):
        return self.record("on_measured")

    @hookimpl
    def close_tracker(self):
        return self.record("close_tracker")

    def record(self, hook):
        self.called.append(hook)
        if hook == self.fails_in:
            raise OSError("no connection")
        return self.answer


def recorded_calls(tmp_path, **plugins):
    """Call the hooks of trackers as a run does, and return what each plugin records."""
    trackers = Trackers(Plugins({"trackers": plugins}))
    trackers.open(tmp_path, {"seed": 1}, None)
    for step in (1, 2):
        trackers.evaluation(step, {"jsd": 0.5})
        trackers.log({"step": step})
    trackers.close()
    return {name: plugin.called for name, plugin in plugins.items()}


ALL = ["open_tracker", *["on_measured", "on_log"] * 2, "close_tracker"]


@pytest.mark.parametrize("hook", ["open_tracker", "on_log", "on_measured", "close_tracker"])
def test_a_tracker_that_fails_is_reported_once_and_not_called_again(tmp_path, caplog, hook):
    called = recorded_calls(tmp_path, bad=Records(hook), good=Records())
    assert called == {"bad": ALL[: ALL.index(hook) + 1], "good": ALL}
    assert [note.getMessage() for note in caplog.records if note.levelname == "WARNING"] == [
        "bad is left out from here on: OSError: no connection; metrics.jsonl has it all"
    ]


def test_an_answer_that_breaks_the_rule_is_reported_like_a_failure(tmp_path, caplog):
    assert recorded_calls(tmp_path, odd=Records(answer={"a": 1})) == {"odd": ALL[:1]}
    assert caplog.text.count("odd is left out from here on: AnswerError: the plugin `odd` answered `open_tracker`") == 1


LINES = st.recursive(
    st.floats(allow_nan=False) | st.integers() | st.booleans() | st.text(max_size=3) | st.none() | st.just([1.0]),
    lambda inner: st.dictionaries(st.sampled_from(["loss", "jsd", "probes", "x/y", "./a.py:A"]), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize(
    ("name", "maker"),
    [("tensorboard", "TensorBoardTracker"), ("trackio", "TrackioTracker"), ("wandb", "WandBTracker"),
     ("mlflow", "MLflowTracker")],
)  # fmt: skip
def test_every_built_in_tracker_gets_all_numbers_by_their_joined_keys(tmp_path, monkeypatch, caplog, name, maker):
    logged = []

    class Tracker:
        def __init__(self, *given, **options):
            self.start = self.finish = lambda: None
            self.store_init_configuration = logged.append
            self.log = lambda values, step: logged.append((step, values))

    monkeypatch.setattr(f"accelerate.tracking.{maker}", Tracker, raising=False)
    trackers = Trackers(Plugins({"trackers": {name: find(name, tmp_path).load()()}}))
    trackers.open(tmp_path, {}, None)

    @settings(max_examples=30)
    @given(st.dictionaries(st.sampled_from(["loss", "losses", "probes"]), LINES, max_size=3), st.integers(1, 9))
    def holds(values, step):
        logged.clear()
        trackers.log({"step": step, **values})
        trackers.evaluation(step, values)
        trackers.evaluation(step, values, "teacher")
        shown = finite(values)
        expected = [numbers(named, "/") for named in (shown, {"held_out": shown}, {"teacher": shown})]
        assert logged == [(step, named) for named in expected]

    holds()
    assert not caplog.text
