"""A process with a pretended GPU, and a folder for runs in it and on the CPU."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tests.cuda import library
from tests.cuda.waits import OURS, Event
from tests.runs.conftest import Lab

ROOT = Path(__file__).parents[2]


class Outcome(NamedTuple):
    """What a run on the pretended device ended with: its error or None, and its events."""

    error: str | None
    events: Counter[Event]

    def in_a_step(self, kind):
        """Return the events of a kind in training steps, without what a run does between them."""
        return [
            (event, count) for event, count in sorted(self.events.items()) if event[:1] + event[2:3] == (kind, "step")
        ]

    @property
    def own_waits(self):
        """Return the waits of a step that lines of neoplug and of its plugins cause."""
        return [f"{e.caller}: {e.what}" for e, _ in self.in_a_step("wait") if e.caller.startswith(OURS)]

    @property
    def dense_masks(self):
        """Return the callers of attention with a dense mask in a step."""
        return [event.caller for event, _ in self.in_a_step("attention") if event.what == "with a dense mask"]


class Driver:
    """The process of `tests.cuda.driver`."""

    def __init__(self, file, log):
        self.log = log
        command = [sys.executable, "-m", "tests.cuda.driver", str(file)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with log.open("w") as errors:
            self.process = subprocess.Popen(command, cwd=ROOT, stderr=errors, **pipes)

    def run(self, recipe, output, fault=None):
        """Run a recipe on the pretended device."""
        task = {"recipe": str(recipe), "output": str(output), "fault": fault}
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"the process ended: {self.log.read_text()[-4000:]}"
        found = json.loads(answer)
        return Outcome(found["error"], Counter({Event(*event): count for *event, count in found["events"]}))

    def end(self):
        """End the process, by the end of its input."""
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(60)


@pytest.fixture(scope="session")
def library_file(pytestconfig):
    """Return the file of the library that pretends a GPU."""
    if torch.version.cuda is not None:
        pytest.skip("this build of torch has CUDA, which a pretended device would take the place of")
    if reason := library.missing():
        pytest.skip(f"the library of the pretended device cannot be compiled: {reason}")
    return library.compiled(pytestconfig.cache.mkdir("pretended-cuda"))


@pytest.fixture(scope="session")
def driver(library_file, tmp_path_factory):
    """Return a process with a pretended GPU."""
    driver = Driver(library_file, tmp_path_factory.mktemp("driver") / "log.txt")
    yield driver
    driver.end()


@pytest.fixture(scope="module")
def lab(tmp_path_factory, tiny_student, tiny_teacher, tiny_chat):
    """Return a lab whose runs have three steps of two micro-batches, and one log line."""
    lab = Lab(tmp_path_factory.mktemp("lab"), tiny_student, tiny_teacher, tiny_chat)
    lab.base["train"] |= {"max_steps": 3, "logging_steps": 3, "save_steps": 3, "learning_rate": 1e-3}
    return lab
