"""The best checkpoint is kept and restored, and training stops early without improvement; also in resumed runs."""

import random
import signal

import pytest
import torch
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, TrainerControl, TrainerState

from neoplug import recipe
from neoplug.errors import PluginError, RecipeError, RunError
from neoplug.evaluation.model_selection import Criterion
from neoplug.registry.measures import MEASURES, RANKING
from neoplug_stops.early_stopping import EarlyStopping

SCRIPT = """
@dataclass(eq=False)
class Script:
    '''Returns a fixed value for each step; interrupts the run at the place named in a file: "save 4 kill".'''

    values: list[float]
    switch: str
    step: int = 0

    def at(self, place, step):
        words = Path(self.switch).read_text().split() if Path(self.switch).exists() else []
        if words[:2] == [place, str(step)]:
            if words[2] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError("tripped")

    @hookimpl
    def on_step_end(self, step):
        self.step = step
        self.at("step", step)

    @hookimpl
    def on_evaluate(self):
        return {"value": self.values[self.step]}

    @hookimpl
    def on_save(self, path):
        self.at("save", int(path.name.split("step-")[1].split(".")[0]))

    @hookimpl
    def on_train_end(self):
        self.at("end", 0)

    def state_dict(self):
        return {"step": self.step}

    def load_state_dict(self, state):
        self.step = state["step"]
"""
VALUES = [9.0, 3.0, 1.0, 2.0, 1.5, 1.2, 0.0]  # by step; no value is better for three evaluations after the second


class Scripted:
    """A recipe of 6 steps that evaluates after each, and would stop at the fifth."""

    def __init__(self, lab):
        self.lab = lab
        lab.plugin("script", SCRIPT)
        self.switch = lab.folder / "switch.txt"
        self.recipe = self.write("scripted")

    def write(self, name, train=None, **evaluate):
        evaluate = {
            "eval_steps": 1, "metric_for_best_model": "probes../script.py:Script.value", "greater_is_better": False,
            "load_best_model_at_end": True, "early_stopping_patience": 3, **evaluate,
        }  # fmt: skip
        train = {
            "max_steps": 6,
            "save_steps": 3,
            "save_total_limit": 1,
            "lr_scheduler_type": "constant",
            **(train or {}),
        }
        probes = {"./script.py:Script": {"values": VALUES, "switch": str(self.switch)}}
        return self.lab.recipe(name, train=train, evaluate=evaluate, probes=probes)

    def run(self, output, trip="", **options):
        self.switch.write_text(trip)
        return self.lab.run(output, self.recipe, **options)


@pytest.fixture(scope="module")
def scripted(module_lab):
    return Scripted(module_lab)


@pytest.fixture(scope="module")
def uninterrupted(scripted):
    return scripted.run("uninterrupted")


def test_training_stops_early_and_restores_the_best_checkpoint(uninterrupted):
    result = uninterrupted.result
    assert (result["status"], result["steps"], result["stopped_early"]) == ("completed", 5, 5)
    assert result["best"] == {"step": 2, "metric": "probes../script.py:Script.value", "value": 1.0}
    assert [entry["step"] for entry in result["evaluations"]] == [1, 2, 3, 4, 5]
    expected = {name: value for name, value in result["evaluations"][1].items() if name not in ("step", "probes")}
    assert {name: result["after"][name] for name in expected} == expected  # the evaluation of step 2, not of step 5
    assert uninterrupted.steps_saved == [2, 5]  # the newest one and the best
    assert uninterrupted.lines[-1]["learning_rate"] == 0.01  # the schedule covers max_steps


def test_the_saved_adapter_is_that_of_a_run_that_ends_at_the_best_step(scripted, uninterrupted):
    short = scripted.lab.run("short", train={"max_steps": 2, "lr_scheduler_type": "constant"})
    ours, theirs = uninterrupted.adapter, short.adapter
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    kept = load_file(uninterrupted.path / "checkpoints" / "step-2" / "trainable.safetensors")
    assert all(torch.equal(tensor, ours[name.replace(".default", "")]) for name, tensor in kept.items())


@pytest.mark.parametrize("trip", [pytest.param("step 3 raise", marks=pytest.mark.slow), "end 0 raise"])
def test_a_resumed_run_selects_the_same_checkpoint(scripted, uninterrupted, trip):
    name = trip.replace(" ", "-")
    with pytest.raises(PluginError, match="tripped"):
        scripted.run(name, trip)
    same(scripted.run(name, resume=True), uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("trip", ["save 2 kill"])
def test_a_killed_and_resumed_run_selects_the_same_checkpoint(scripted, uninterrupted, trip):
    name = trip.replace(" ", "-")
    scripted.switch.write_text(trip)
    process = scripted.lab.start(scripted.recipe, name)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    same(scripted.run(name, resume=True), uninterrupted)


def same(run, reference):
    ours, theirs = (
        {k: v for k, v in r.result.items() if k not in ("seconds", "peak_memory_bytes")} for r in (run, reference)
    )
    assert ours == theirs
    assert (run.facts, run.steps_saved) == (reference.facts, reference.steps_saved)
    assert run.adapter_bytes == reference.adapter_bytes


@pytest.mark.slow
def test_the_last_step_may_be_the_best(scripted):
    recipe = scripted.write("patient", early_stopping_patience=None, load_best_model_at_end=False)
    scripted.switch.write_text("")
    run = scripted.lab.run("patient", recipe)
    assert run.result["best"]["step"] == 6
    assert "stopped_early" not in run.result
    assert run.steps_saved == [6]


def test_a_metric_that_no_probe_returns_ends_the_run_before_training(scripted):
    recipe = scripted.write("absent", metric_for_best_model="probes../script.py:Script.valeu")
    with pytest.raises(RunError, match=r"measured None; did you mean `probes\.script\.py:Script\.value`"):
        scripted.lab.run("absent", recipe)
    assert not (scripted.lab.folder / "absent" / "metrics.jsonl").exists()


def test_evaluation_measures_every_metric_that_selects_a_checkpoint(uninterrupted):
    measured = {name for name, value in uninterrupted.result["after"].items() if isinstance(value, float)}
    assert measured - RANKING.keys() == {"entropy", "kd_ce_cosine"}  # neither has a better direction
    assert measured == set(MEASURES)


def test_a_metric_of_a_probe_needs_greater_is_better(scripted):
    file = scripted.write("silent", greater_is_better=None)
    with pytest.raises(RecipeError, match="may be better when greater or when smaller"):
        recipe.load(file)


class Frozen:
    """The attributes of transformers' arguments that the callback reads."""

    def __init__(self, greater):
        self.metric_for_best_model = "eval_m"
        self.greater_is_better = greater


@pytest.mark.parametrize("seed", range(20))
def test_patience_and_threshold_are_those_of_transformers(seed):
    rng = random.Random(seed)
    greater, threshold, patience = rng.random() < 0.5, rng.choice([0.0, 0.2, 1.0]), rng.randint(1, 3)
    values = [round(rng.uniform(0, 3), 1) for _ in range(12)]
    callback = EarlyStoppingCallback(early_stopping_patience=patience, early_stopping_threshold=threshold)
    state, control, better = TrainerState(), TrainerControl(), (lambda a, b: a > b) if greater else (lambda a, b: a < b)
    criterion, stops = Criterion("m", greater), EarlyStopping("m", patience, threshold, greater)
    stopped = False
    for count, value in enumerate(values, 1):
        callback.on_evaluate(Frozen(greater), state, control, metrics={"eval_m": value})
        if state.best_metric is None or better(value, state.best_metric):  # transformers' Trainer does this afterwards
            state.best_metric, state.best_global_step = value, count
        seen = [{"step": step, "m": measured} for step, measured in enumerate(values[:count], 1)]
        best = criterion.best_of(seen)
        assert (best.step, best.value) == (state.best_global_step, state.best_metric)
        resumed = EarlyStopping("m", patience, threshold, greater)
        resumed.load_state_dict(stops.state_dict())
        reason = resumed.should_stop({"m": value})
        assert stops.should_stop({"m": value}) == reason
        stopped |= reason is not None
        assert stopped == control.should_training_stop
