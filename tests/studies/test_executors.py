"""Slurm through submitit, Ray, and printed commands: each for real on this machine."""

import os
import signal
import sys
import time
from textwrap import dedent

import pytest

from neoplug.errors import UsageError
from neoplug.studies.directory import StudyDir
from neoplug.studies.executors import make_executor
from neoplug.studies.executors.printed import Printed

PERFORM = """
import os, signal, sys, time
from pathlib import Path
from neoplug.errors import Interrupted
from neoplug.runs.signals import stopping

class Perform:
    def __init__(self, folder):
        self.folder = folder

    def __call__(self, job):
        with (self.folder / job).open("a") as file:
            file.write("begun\\n")
        if job == "raises":
            raise OSError("no such luck")
        if job == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if job == "requeued" and (self.folder / job).read_text().count("begun") == 1:
            with stopping() as stop, stop.deferring():
                (self.folder / "waits").touch()
                while stop.signal is None:
                    time.sleep(0.01)
                (self.folder / job).open("a").write("saved\\n")
                raise Interrupted(stop.signal, "stopped")
        with (self.folder / job).open("a") as file:
            file.write("done\\n")
"""


@pytest.fixture
def perform(tmp_path, monkeypatch):
    """Return a function that writes what it does, in a module that other processes find."""
    (tmp_path / "performing.py").write_text(dedent(PERFORM))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    from performing import Perform

    yield Perform(tmp_path)
    sys.modules.pop("performing", None)


def ended(executor, count):
    found = {}
    while len(found) < count:
        found |= {end.job: end for end in executor.wait(0.5)}
    return found


@pytest.fixture
def slurm(perform, tmp_path):
    pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    from neoplug.studies.executors.slurm import Slurm

    executor = Slurm(perform, tmp_path / "slurm", {"cluster": "local", "timeout_min": 5})
    yield executor
    executor.close()


def test_slurm_runs_an_array(slurm, tmp_path):
    slurm.submit(["a", "b", "raises"])
    found = ended(slurm, 3)
    assert found["a"].reason == found["b"].reason == ""
    assert "OSError: no such luck" in found["raises"].reason
    assert [(tmp_path / job).read_text() for job in "ab"] == ["begun\ndone\n"] * 2


def test_slurm_names_a_job_whose_process_was_killed(slurm):
    slurm.submit(["killed"])
    assert ended(slurm, 1)["killed"].reason.startswith("its Slurm job ended as ")


def test_a_requeued_job_saves_a_checkpoint_and_goes_on(slurm, tmp_path):
    """The signal that Slurm sends before a time limit, or at a preemption."""
    slurm.submit(["requeued"])
    while not (tmp_path / "waits").exists():
        time.sleep(0.01)
    (submitted,) = slurm.jobs.values()
    (child,) = children(submitted._process.pid)
    os.kill(child, signal.SIGUSR2)
    assert ended(slurm, 1)["requeued"].reason == ""
    assert (tmp_path / "requeued").read_text() == "begun\nsaved\nbegun\ndone\n"


def children(process):
    with open(f"/proc/{process}/task/{process}/children", encoding="utf-8") as file:  # noqa: PTH123
        return [int(child) for child in file.read().split()]


def test_a_parameter_that_submitit_does_not_know_is_refused(perform, tmp_path):
    pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    from neoplug.studies.executors.slurm import Slurm

    with pytest.raises(UsageError, match=r"executor\.slurm: (?s:.)*no_such(?s:.)*fix: "):
        Slurm(perform, tmp_path / "slurm", {"cluster": "local", "no_such": 1})


@pytest.fixture
def ray(perform, home_of_ray):
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    from neoplug.studies.executors.ray import Ray

    executor = Ray(perform, {"cpus": 1})
    yield executor
    executor.close()


@pytest.mark.slow
def test_ray_runs_tasks_and_names_lost_ones(ray, tmp_path):
    """A cluster that is started on this machine."""
    ray.submit(["a", "b", "raises", "killed"])
    found = ended(ray, 4)
    assert found["a"].reason == found["b"].reason == ""
    assert "no such luck" in found["raises"].reason
    assert found["killed"].reason.startswith("its Ray task was lost: ")
    assert [(tmp_path / job).read_text() for job in "ab"] == ["begun\ndone\n"] * 2
    assert (tmp_path / "killed").read_text() == "begun\n"


def test_commands_are_printed(tmp_path, capsys):
    executor = Printed(tmp_path / "a study")
    executor.submit(["0123", "4567"])
    assert capsys.readouterr().out.splitlines() == [
        f"neoplug study '{tmp_path}/a study' --job 0123", f"neoplug study '{tmp_path}/a study' --job 4567"
    ]  # fmt: skip
    assert executor.wait(1.0) == []


@pytest.mark.parametrize(("kind", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_package_is_refused_with_the_command_that_installs_it(tmp_path, monkeypatch, kind, package):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=rf"needs the package {package}(?s:.)*pip install 'neoplug\[{kind}\]'"):
        make_executor(kind, {}, StudyDir(tmp_path), lambda job: 0)
