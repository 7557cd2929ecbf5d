"""With --json, stdout has one JSON value, whatever hooks print while they run."""

import json
import os
import subprocess
import sys

import pytest

PRINTING = """
import os, subprocess, sys
from dataclasses import dataclass
from neoplug import hookimpl

def say():
    print("print")
    print("the first stdout", file=sys.__stdout__)
    os.write(1, b"by number\\n")
    subprocess.run(["echo", "another process"])

@dataclass(eq=False)
class Loss:
    @hookimpl
    def token_loss(self, student, labels):
        say()
        return -student.gather(-1, labels[:, None]).squeeze(-1)

@dataclass(eq=False)
class Preparation:
    @hookimpl
    def prepare_student(self, model):
        say()

@dataclass(eq=False)
class Probe:
    @hookimpl
    def on_evaluate(self, model):
        say()
        return {"one": 1.0}
"""
WAYS = ("print", "the first stdout", "by number", "another process")


@pytest.fixture
def plugin(recipe):
    file = recipe.parent / "printing.py"
    file.write_text(PRINTING)
    return file


@pytest.fixture
def printed(recipe):
    """Return a function that runs a command with --json and returns the value on stdout, and stderr."""

    def printed(*arguments):
        command = [sys.executable, "-m", "neoplug", *map(str, arguments), "--json"]
        answer = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONUNBUFFERED": ""})
        assert answer.returncode in (0, 1), answer.stderr  # 1: a property does not hold
        return json.loads(answer.stdout), answer.stderr

    return printed


def test_prints_of_a_loss_that_is_checked_go_to_stderr(printed, plugin):
    report, err = printed("check", f"{plugin}:Loss")
    assert report["plugin"] == f"{plugin}:Loss"
    assert all(f"\n{way}\n" in f"\n{err}" for way in WAYS)


def test_prints_of_a_probe_that_evaluates_go_to_stderr(printed, plugin, recipe, tiny_student):
    found, err = printed("eval", tiny_student, recipe, f"probes={{{plugin}:Probe: {{}}}}")
    assert '"one": 1.0' in json.dumps(found)
    assert all(f"\n{way}\n" in f"\n{err}" for way in WAYS)


def test_prints_of_a_preparation_that_is_planned_go_to_stderr(printed, plugin, recipe):
    plan, err = printed("plan", recipe, f"student.prepare={{{plugin}:Preparation: {{}}}}")
    assert plan["steps"] > 0
    assert all(f"\n{way}\n" in f"\n{err}" for way in WAYS)


def test_in_one_process_prints_go_to_stderr_too(neoplug, plugin):
    answer = neoplug("check", f"{plugin}:Loss", "--json")
    assert json.loads(answer.out)["plugin"] == f"{plugin}:Loss"
    assert "\nprint\n" in f"\n{answer.err}"


@pytest.mark.parametrize(
    ("closed", "out", "err"),
    [("<&-", True, True), (">&-", False, True), ("2>&-", True, False), ("<&- >&- 2>&-", False, False)],
)
@pytest.mark.parametrize(("arguments", "code"), [("plugins --json", 0), ("plan no_such_recipe", 2)])
def test_closed_streams_do_no_harm(arguments, code, closed, out, err):
    command = f"exec {closed}; {sys.executable} -W error -m neoplug {arguments}"
    answer = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert answer.returncode == code
    assert bool(answer.stdout) == (out and code == 0)
    assert bool(answer.stderr) == (err and code == 2)
