"""A process that fails, is killed or hangs ends the run on all; torchrun starts it again, and it goes on."""

import os
import re
import socket
import subprocess
import sys

import pytest

from neoplug.errors import UsageError
from neoplug.files.contents import damage
from neoplug.runs.directory import chosen_output
from tests.commands import start_ranks, variables_of_ranks

PARTS = """
import sys


@dataclass(eq=False)
class Fails:
    '''Makes one rank fail after a step, once: where the file exists.'''

    how: str
    rank: int
    step: int
    file: str

    @hookimpl
    def on_step_end(self, step):
        file = Path(self.file)
        if (int(os.environ.get("RANK", 0)), step) != (self.rank, self.step) or not file.exists():
            return
        file.unlink()
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "sleep":
            time.sleep(900)
        raise torch.OutOfMemoryError("no room for 3 GiB") if self.how == "memory" else ValueError("the step is odd")
"""
HOST = re.escape(socket.gethostname())


@pytest.fixture
def failing(lab):
    """Return a function that writes a recipe in which a rank fails after step 3."""
    lab.plugin("parts", PARTS)

    def write(how, rank, **train):
        file = lab.folder / "flag"
        file.touch()
        treatments = {"./parts.py:Fails": {"how": how, "rank": rank, "step": 3, "file": str(file)}}
        return lab.recipe(how, treatments=treatments, train={"max_steps": 5, "logging_steps": 1, **train})

    return write


def start(lab, recipe, ranks):
    """Start the ranks of a run, and return their processes by rank."""
    command = [sys.executable, "-m", "neoplug", "run", str(recipe), "--output", str(lab.folder / "run")]
    return [
        subprocess.Popen(command, env={**os.environ, **variables}, stderr=subprocess.PIPE, text=True)
        for variables in variables_of_ranks(ranks)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "rank"), [("raise", 1), ("raise", 0), ("memory", 1)])
def test_an_error_in_one_process_ends_all_and_is_named(lab, failing, how, rank):
    processes = start(lab, failing(how, rank), 3)
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1, 1]
    name = rf"rank {rank} \(process {processes[rank].pid} on {HOST}\)"
    says = {"raise": "ValueError: the step is odd", "memory": "OutOfMemoryError: no room for 3 GiB"}[how]
    result = lab.at("run").result
    assert result["status"] == "failed"
    assert re.match(rf"{name}: the plugin `\./parts\.py:Fails` failed in `on_step_end`: {says}\n", result["reason"])
    for other in {0, 1, 2} - {rank}:
        # The processes met in a store of rank 0, which the others may find gone.
        what = rf"({name}: the plugin .*{says}" + (f"|{name} ended with exit status 1)" if rank == 0 else ")")
        assert re.search(rf"{what}; step [23] was the last that finished, step 2 the last", errors[other])
        assert ("smaller micro-batches" in errors[other]) == (how == "memory")
    assert lab.at("run").steps_saved == [2]
    assert not damage(lab.folder / "run/checkpoints/step-2")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_hangs_ends_the_others_after_the_timeout(lab, failing, rank):
    processes = start(lab, failing("sleep", rank, ddp_timeout=5), 3)
    others = [process for number, process in enumerate(processes) if number != rank]
    try:
        errors = [process.communicate(timeout=240)[1] for process in others]
        assert [process.returncode for process in others] == [1, 1]
        assert processes[rank].poll() is None
    finally:
        processes[rank].kill()
        processes[rank].communicate()
    what = rf"rank {rank} \(process {processes[rank].pid} on {HOST}\) did not take part in a step within 5 seconds"
    for text in (*errors, lab.at("run").result["reason"]):
        assert re.search(rf"{what} \(train\.ddp_timeout\); step [23] was the last that finished, step 2 the last", text)
    assert not damage(lab.folder / "run/checkpoints/step-2")


@pytest.mark.slow
def test_torchrun_starts_a_killed_run_again_and_it_goes_on(lab, failing):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", "1", "-m", "neoplug", "run", str(failing("kill", 1))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = ["--output", str(lab.folder / "run")]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, env=environment, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr
    run = lab.at("run")
    assert (run.result["status"], run.result["steps"]) == ("completed", 5)
    assert not (lab.folder / "flag").exists()
    ended = [rank.end() for rank in start_ranks(2, "run", lab.folder / "kill.yaml", "--output", lab.folder / "whole")]
    assert not any(rank.exitcode for rank in ended), ended[0].err
    assert run.facts == lab.at("whole").facts
    assert run.adapter_bytes == lab.at("whole").adapter_bytes


def test_a_run_that_may_be_started_again_needs_a_directory(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    with pytest.raises(UsageError, match="--output DIR"):
        chosen_output(None, None, "recipe", resume=False)
    assert str(chosen_output("here", None, "recipe", resume=False)) == "here"


def test_a_process_that_is_started_again_resumes_the_run(lab, monkeypatch):
    run = lab.run("run", train={"max_steps": 2, "save_steps": 1})
    (run.path / "result.json").unlink()
    with pytest.raises(UsageError, match="holds a run already"):
        lab.run("run", train={"max_steps": 2, "save_steps": 1})
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert lab.run("run", train={"max_steps": 2, "save_steps": 1}).result["status"] == "completed"
