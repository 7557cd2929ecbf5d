"""A plugin of `stops` ends a run at its step: the student is evaluated and saved, and a resumed run ends there too."""

import pytest

from neoplug import recipe
from neoplug.errors import Interrupted

STOPS = """
@dataclass(eq=False)
class Third:
    '''Ends training at its third line.'''

    seen: list = field(default_factory=list, init=False)

    @hookimpl
    def should_stop(self, step, metrics, measured):
        assert (metrics["step"], measured) == (step, None)
        self.seen.append(metrics.pop("step"))
        return f"lines {self.seen}" if len(self.seen) == 3 else None

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


@dataclass(eq=False)
class Later(Third):
    pass


@dataclass(eq=False)
class Interrupt:
    '''Sends the signal to stop after a step, where a file says so.'''

    switch: str

    @hookimpl
    def on_step_end(self, step):
        if Path(self.switch).exists() and step == 2:
            Path(self.switch).unlink()
            os.kill(os.getpid(), signal.SIGTERM)
"""


ODD = """
@dataclass(eq=False)
class Odd:
    @hookimpl
    def on_step_end(self):
        return {"odd": float("nan")}

    @hookimpl
    def on_evaluate(self):
        return {"odd": float("inf"), "even": 2.0}


@dataclass(eq=False)
class AtNone:
    @hookimpl
    def should_stop(self, metrics, measured):
        if measured is None:
            return None
        return f"{metrics['odd']} and {list(measured['probes'].values())}"
"""


@pytest.fixture
def written(lab):
    lab.plugin("stops", STOPS)
    return lab.recipe(
        "stopped",
        train={"max_steps": 8, "logging_steps": 1, "save_steps": 2},
        stops={"./stops.py:Third": {}, "./stops.py:Later": {}},
        treatments={"./stops.py:Interrupt": {"switch": str(lab.folder / "switch")}},
    )


def test_a_plugin_ends_a_run_as_its_last_step_would(lab, written):
    run = lab.run("run", written)
    assert (run.result["status"], run.result["steps"], run.result["stopped_early"]) == ("completed", 3, 3)
    assert run.result["stop_reason"] == "./stops.py:Later: lines [1, 2, 3]"  # the first by name
    assert run.steps_saved == [2, 3]
    assert [line["step"] for line in run.lines] == [1, 2, 3]
    assert "after" in run.result
    (lab.folder / "switch").touch()
    with pytest.raises(Interrupted):
        lab.run("resumed", written)
    assert lab.at("resumed").steps_saved == [2]
    resumed = lab.run("resumed", written, resume=True)
    assert resumed.facts == run.facts
    assert resumed.result["stop_reason"] == run.result["stop_reason"]
    assert resumed.adapter_bytes == run.adapter_bytes


def test_a_key_of_transformers_and_the_section_name_the_same_plugins(lab):
    evaluate = {"eval_steps": 2, "metric_for_best_model": "jsd"}
    keys = recipe.load(
        lab.recipe("keys", evaluate={**evaluate, "early_stopping_patience": 2}, train={"lr_scheduler_type": "linear"})
    )
    sections = recipe.load(
        lab.recipe(
            "sections",
            evaluate=evaluate,
            stops={"early_stopping": {"metric": "jsd", "patience": 2}},
            schedule={"linear": {}},
        )
    )
    for section in ("schedule", "stops"):
        ((name, plugin),), ((other, same),) = (checked.plugins.section(section).items() for checked in (keys, sections))
        assert (name, vars(plugin)) == (other, vars(same))


def test_a_number_that_is_not_finite_is_none_as_in_the_files_of_the_run(lab):
    lab.plugin("odd", ODD)
    run = lab.run(
        "run",
        train={"max_steps": 3, "logging_steps": 1},
        evaluate={"eval_steps": 1},
        probes={"./odd.py:Odd": {}},
        stops={"./odd.py:AtNone": {}},
    )
    assert run.lines[0]["odd"] is None
    assert run.result["stop_reason"] == "./odd.py:AtNone: None and [{'odd': None, 'even': 2.0}]"
