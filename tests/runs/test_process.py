"""A run leaves its process unchanged: consecutive runs give the numbers of separate processes."""

import logging
import os
import random
import signal
import sys
import threading
import warnings
from functools import partial
from pathlib import Path

import accelerate.state
import datasets
import huggingface_hub.utils
import numpy as np
import peft  # noqa: F401  libraries that a run imports may change the process when they are imported
import pytest
import torch
import transformers

import neoplug
from neoplug.errors import PluginError, UsageError
from neoplug.runs.progress import Silent

FIRST = {
    "adapter": {"lora": {"r": 4, "lora_dropout": 0.3, "target_modules": ["q_proj", "v_proj"]}},
    "seed": 3,
    "train": {"max_steps": 2},
}
SECOND = {
    "adapter": {"dora": {"r": 2}},
    "seed": 4,
    "student": {"dtype": "bfloat16"},
    "data": {"packing": True},
    "optimizer": {"sgd": {}},
    "treatments": {"label_noise": {"probability": 0.2}},
    "train": {"max_steps": 2, "gradient_checkpointing": True},
}


def process_state():
    """Return the state of this process that runs and libraries could change, as comparable data."""
    loggers = {"": logging.root} | {
        name: logger for name, logger in logging.root.manager.loggerDict.items() if isinstance(logger, logging.Logger)
    }
    return {
        "loggers": {
            name: (logger.level, [*map(id, logger.handlers)], logger.propagate, logger.disabled)
            for name, logger in loggers.items()
            if logger.level or logger.handlers or logger.disabled or not logger.propagate
        },
        "transformers": (transformers.logging.get_verbosity(), transformers.utils.logging.is_progress_bar_enabled()),
        "datasets": (datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()),
        "hub": huggingface_hub.utils.are_progress_bars_disabled(),
        "accelerate": [
            dict(state._shared_state)
            for state in (
                accelerate.state.PartialState,
                accelerate.state.AcceleratorState,
                accelerate.state.GradientState,
            )
        ],
        "generators": (
            random.getstate(),
            str(np.random.get_state(legacy=False)),
            torch.get_rng_state().tolist(),
        ),
        "torch": (
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.get_num_threads(),
            torch.get_num_interop_threads(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_deterministic_debug_mode(),
            torch.get_float32_matmul_precision(),
            torch.is_anomaly_enabled(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
        ),
        "warnings": [*warnings.filters],
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "hooks": (sys.excepthook, threading.excepthook, sys.stdout, sys.stderr),
        "environment": dict(os.environ),
        "path": [*sys.path],
        "folder": Path.cwd(),
    }


def in_a_thread(function):
    """Return what a function returns in a thread; raise what it raises."""
    found = {}

    def work():
        try:
            found["value"] = function()
        except BaseException as error:
            found["error"] = error

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if "error" in found:
        raise found["error"]
    return found["value"]


def numbers(run):
    result = {key: value for key, value in run.result.items() if key not in ("seconds", "peak_memory_bytes")}
    return run.facts, result, run.adapter_bytes


@pytest.fixture(scope="module")
def separate(module_lab):
    """Return both recipes, and the numbers of each run in a separate process."""
    recipes = [module_lab.recipe(name, **sections) for name, sections in (("first", FIRST), ("second", SECOND))]
    found = []
    for recipe in recipes:
        process = module_lab.start(recipe, f"separate-{recipe.stem}")
        process.join()
        assert process.exitcode == 0
        found.append(numbers(module_lab.at(f"separate-{recipe.stem}")))
    return recipes, found


@pytest.mark.parametrize("call", [lambda function: function(), in_a_thread], ids=["main thread", "another thread"])
def test_consecutive_runs_give_the_numbers_of_separate_processes(module_lab, separate, call, request):
    recipes, expected = separate
    names = [f"{request.node.callspec.id}-{recipe.stem}" for recipe in recipes]
    found = [call(partial(module_lab.run, name, recipe)) for name, recipe in zip(names, recipes, strict=True)]
    assert [numbers(run) for run in found] == expected
    again = call(lambda: module_lab.run(f"{names[0]}-again", recipes[0]))
    assert numbers(again) == expected[0]


FAILS = """
@dataclass(eq=False)
class Fails:
    @hookimpl
    def on_step_end(self, step):
        raise OSError("tripped")
"""


@pytest.mark.parametrize("call", [lambda function: function(), in_a_thread], ids=["main thread", "another thread"])
@pytest.mark.parametrize("ends", ["completed", "failed"])
def test_the_process_state_is_restored(lab, monkeypatch, call, ends):
    handler = logging.NullHandler()
    monkeypatch.setattr(logging.getLogger("neoplug"), "handlers", [handler])
    monkeypatch.setattr(logging.getLogger("neoplug"), "level", logging.ERROR)
    lab.plugin("fails", FAILS)
    recipe = lab.recipe(train={"max_steps": 1}, treatments={"./fails.py:Fails": {}} if ends == "failed" else {})
    before = process_state()
    if ends == "failed":
        with pytest.raises(PluginError):
            call(lambda: lab.run("run", recipe))
    else:
        call(lambda: lab.run("run", recipe))
    after = process_state()
    assert {name: after[name] for name in before} == before


class Pauses(Silent):
    """Pauses a run when its training begins."""

    def __init__(self):
        self.training, self.go_on = threading.Event(), threading.Event()

    def started(self, total_steps, done):
        self.training.set()
        self.go_on.wait()


def test_a_second_run_at_the_same_time_is_refused(lab):
    recipe, pauses, results = lab.recipe(train={"max_steps": 1}), Pauses(), []
    thread = threading.Thread(
        target=lambda: results.append(neoplug.run(recipe, output=lab.folder / "first", progress=pauses))
    )
    thread.start()
    pauses.training.wait()
    try:
        with pytest.raises(UsageError, match=r"a run is in progress in this process(?s:.)*why: (?s:.)*fix: ") as caught:
            lab.run("second", recipe)
    finally:
        pauses.go_on.set()
        thread.join()
    assert caught.value.exit_code == 2
    assert not (lab.folder / "second").exists()
    assert results[0]["status"] == "completed"
    assert lab.run("second", recipe).result["status"] == "completed"


def test_a_run_starts_after_a_failed_run(lab):
    lab.plugin("fails", FAILS)
    with pytest.raises(PluginError):
        lab.run("failed", treatments={"./fails.py:Fails": {}}, train={"max_steps": 1})
    assert lab.run("next", train={"max_steps": 1}).result["status"] == "completed"
