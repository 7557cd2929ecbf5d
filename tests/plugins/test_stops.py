"""Plugins of the section `stops`: when they end training, and that a resumed one decides as one that ran through."""

import pytest

from neoplug import Recipe
from neoplug_stops import time_budget
from neoplug_stops.early_stopping import EarlyStopping
from neoplug_stops.loss_spike import LossSpike
from neoplug_stops.time_budget import TimeBudget


def ends_at(make, values, resumed_at=None):
    """Return the number of the loss at which a plugin ends training; it goes on from its state at `resumed_at`."""
    plugin = make()
    for number, loss in enumerate(values):
        if number == resumed_at:
            state, plugin = plugin.state_dict(), make()
            plugin.load_state_dict(state)
        if plugin.should_stop({"loss": loss}, None):
            return number
    return None


@pytest.mark.parametrize("resumed_at", [None, 2, 9, 10, 11, 12])
@pytest.mark.parametrize(
    ("spike", "end"),
    [([9.0, 9.0, 9.0], 12), ([9.0, 9.0, 1.0, 9.0, 9.0], None), ([1.9] * 9, None), ([float("inf")] * 3, 12)],
)
def test_a_spike_of_some_steps_ends_training(spike, end, resumed_at):
    losses = [1.0, 0.9, 1.1, 1.0, 0.95, 1.05, 1.0, 1.0, 1.0, 1.0, *spike]
    assert ends_at(lambda: LossSpike(factor=2, window=10, patience=3), losses, resumed_at) == end


def test_nothing_is_a_spike_before_there_is_a_window():
    assert ends_at(lambda: LossSpike(factor=1.5, window=4, patience=1), [1.0, 1.0, 8.0, 8.0]) is None


def test_a_spike_is_not_sought_in_evaluations():
    assert LossSpike(factor=1.5, window=2, patience=1).should_stop({}, {"forward_kl": 9.0}) is None


def test_a_budget_counts_the_sessions_of_a_resumed_run(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time_budget, "monotonic", lambda: now[0])
    first = TimeBudget(hours=1.0)
    first.load_state_dict({"seconds": 0.0})
    now[0] = 3_000.0
    assert first.should_stop() is None
    state = first.state_dict()
    now[0] = 90_000.0
    second = TimeBudget(hours=1.0)
    second.load_state_dict(state)
    now[0] = 90_599.0
    assert second.should_stop() is None
    now[0] = 90_600.0
    assert second.should_stop() == "1.00 hours have passed, of a budget of 1"


def test_a_metric_that_is_not_measured_is_named():
    with pytest.raises(ValueError, match="measured no_metric as None"):
        EarlyStopping("no_metric").should_stop({"forward_kl": 1.0, "probes": {}})


@pytest.mark.parametrize(("metric", "end"), [("forward_kl", 4), ("top1_agreement", 2)])
def test_early_stopping_takes_the_direction_from_the_metric(metric, end):
    plugin = EarlyStopping(metric, patience=1)
    falling = [plugin.should_stop({metric: value}) for value in (0.9, 0.7, 0.5, 0.6)]
    assert next(number for number, reason in enumerate(falling, 1) if reason) == end


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metric": "forward_k"}, "there is no metric `forward_k`; did you mean `forward_kl`?"),
        ({"metric": "entropy"}, "there is no metric `entropy`"),
        ({"metric": "probes.calibration.ece"}, "`probes.calibration.ece` may be better when greater or when smaller"),
        ({"metric": "probes.calibration.ece", "greater_is_better": False}, None),
        ({"metric": "top1_agreement"}, None),
    ],
)
def test_early_stopping_refuses_a_metric_that_cannot_be_compared_before_training(options, words):
    common = {"max_length": 8, "source": "rows.jsonl"}
    recipe = Recipe(
        teacher={"model": "a"}, student={"model": "b"}, data=common, loss={"forward_kl": {}}, adapter={"lora": {}},
        train={"max_steps": 1}, evaluate={"eval_steps": 1}, probes={"calibration": {}},
    )  # fmt: skip
    problems = [problem.what for problem in EarlyStopping(**options).check(recipe)]
    assert problems == [] if words is None else len(problems) == 1 and problems[0].startswith(words)


@pytest.mark.parametrize(
    ("plugin", "options"),
    [(LossSpike, {"factor": 1.0}), (LossSpike, {"window": 1}), (LossSpike, {"patience": 0}), (TimeBudget, {"hours": 0}),
     (EarlyStopping, {"metric": "m", "patience": 0}), (EarlyStopping, {"metric": "m", "threshold": -1})],
)  # fmt: skip
def test_options_out_of_range_are_refused(plugin, options):
    with pytest.raises(ValueError, match="must be"):
        plugin(**options)
