"""`per_device_train_batch_size: auto`: the size that is chosen, what a run records of it, and memory that runs out."""

import json

import pytest
import torch
import yaml
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from neoplug import recipe as recipes
from neoplug.errors import PluginError, RecipeError
from neoplug.runs.micro_batch import MARGIN, largest_micro_batch
from neoplug.runs.plan import plan
from neoplug.training import module

AUTO = {"per_device_train_batch_size": "auto", "gradient_accumulation_steps": 4}


@pytest.mark.parametrize(("room", "size"), [(0, 1), (40, 3), (60, 4), (80, 6), (10**9, 12)])
def test_the_largest_divisor_of_the_rows_that_fits_is_taken(lab, room, size):
    """A step needs 10 + 10 bytes a row."""
    checked = recipes.load(lab.recipe(train={**AUTO, "gradient_accumulation_steps": 12}))
    train = largest_micro_batch(checked, lambda one: 10 + 10 * one.recipe.train.micro_batch, int(room * MARGIN) + 1)
    assert train.recipe.train.micro_batch == size
    assert train.recipe.train.micro_batch * train.recipe.train.gradient_accumulation_steps == 12


def test_auto_needs_the_number_of_rows(lab):
    with pytest.raises(RecipeError, match="so `gradient_accumulation_steps` must be set"):
        recipes.load(lab.recipe(train={"per_device_train_batch_size": "auto", "gradient_accumulation_steps": None}))


@pytest.fixture
def room(monkeypatch):
    """Return a function that sets the memory of the device."""
    return lambda size: monkeypatch.setattr("neoplug.runs.micro_batch.room_of", lambda device: size)


def test_a_run_with_auto_is_the_run_with_the_number_that_was_chosen(lab, room):
    """The room is that of a step of two rows, by its plan."""
    two = plan(recipes.load(lab.recipe("two")))["memory_bytes"]
    room(int((two["total"] - two["at_start"]) * MARGIN) + 1)
    run, number = lab.run("auto", train=AUTO), lab.run("number")
    assert run.facts == number.facts
    assert run.lock["chosen"] == {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    assert run.lock["recipe"]["train"]["per_device_train_batch_size"] == "auto"
    written = yaml.safe_load((run.path / "recipe.yaml").read_text())["train"]
    assert (written["per_device_train_batch_size"], written["gradient_accumulation_steps"]) == (2, 2)


FAILS = """
@dataclass(eq=False)
class Fails:
    file: str

    @hookimpl
    def on_step_end(self, step):
        if step == 3 and Path(self.file).exists():
            raise RuntimeError("stopped")
"""


def test_a_run_with_auto_resumes_with_the_number_that_was_chosen(lab, room):
    """Also where less memory is free by then."""
    lab.plugin("fails", FAILS)
    file = lab.folder / "fails.txt"
    sections = {"probes": {"./fails.py:Fails": {"file": str(file)}}, "train": {**AUTO, "max_steps": 4, "save_steps": 2}}
    room(10**12)
    whole = lab.run("whole", **sections)
    assert whole.lock["chosen"] == {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    file.touch()
    with pytest.raises(PluginError, match="stopped"):
        lab.run("run", **sections)
    file.unlink()
    room(1)
    resumed = lab.run("run", lab.recipe(**sections), resume=True)
    assert resumed.facts == whole.facts
    assert "dealt_anew" not in resumed.result


@pytest.fixture
def runs_out(monkeypatch):
    """Return a function: memory runs out in the first calls of the objective."""

    def set_calls(count):
        objective, calls = module.objective, iter(range(count))

        def failing(*arguments):
            if not _get_current_dispatch_mode_stack() and next(calls, None) is not None:  # not where it is foretold
                raise torch.OutOfMemoryError("CUDA out of memory")
            return objective(*arguments)

        monkeypatch.setattr(module, "objective", failing)

    return set_calls


def test_a_first_step_without_memory_begins_again_with_half_the_micro_batch(lab, room, runs_out):
    number = lab.run("number", train={"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2})
    room(10**12)
    runs_out(1)
    run = lab.run("auto", train=AUTO)
    assert run.facts == number.facts
    assert "memory ran out in the first step: it begins again with 2 rows" in (run.path / "log.txt").read_text()
    assert run.lock["chosen"] == {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    assert yaml.safe_load((run.path / "recipe.yaml").read_text())["train"]["per_device_train_batch_size"] == 2
    recorded = json.loads((run.path / "contents.json").read_text())["files"]
    assert recorded["lock.json"]["size"] == (run.path / "lock.json").stat().st_size


@pytest.mark.parametrize(("train", "calls"), [(AUTO, 2), ({}, 1)])
def test_memory_that_runs_out_again_or_with_a_number_ends_the_run(lab, room, runs_out, train, calls):
    room(10**12)
    runs_out(calls)
    with pytest.raises(torch.OutOfMemoryError):
        lab.run("auto", train=train)
