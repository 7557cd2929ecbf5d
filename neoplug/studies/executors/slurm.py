"""The executor for Slurm, by submitit: the jobs of a phase are one array; one that is requeued goes on."""

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from math import inf
from pathlib import Path
from types import FrameType
from typing import Any

import submitit

from neoplug.errors import Interrupted, UsageError
from neoplug.studies.executors.base import Ended

POLL = 0.2  # seconds
RULE = "-" * 22  # around a traceback in an error of submitit


class Task:
    """One job as submitit runs it."""

    def __init__(self, perform: Callable[[str], None]) -> None:
        self.perform = perform

    def __call__(self, job: str) -> None:
        """Perform a job. At a time limit or a preemption its run saves a checkpoint; then submitit requeues it."""
        number = submitit.JobEnvironment._usr_sig()
        requeue = signal.signal(number, _end_run)
        try:
            self.perform(job)
        except Interrupted:
            if not callable(requeue):
                raise
            requeue(number, None)

    def checkpoint(self, job: str) -> submitit.helpers.DelayedSubmission:
        """Return what a requeued job does: the same, from the checkpoint of its run."""
        return submitit.helpers.DelayedSubmission(self, job)


def _end_run(number: int, frame: FrameType | None) -> None:
    """Send this process the signal at which a run saves a checkpoint and ends."""
    os.kill(os.getpid(), signal.SIGTERM)


class Slurm:
    """Submits jobs to Slurm.

    perform  performs a job by its id; it is pickled
    folder   for submitit's files; the nodes share it
    options  parameters of submitit's executor; `cluster: local` runs jobs on this machine, for tests
    """

    detached = False
    capacity = inf

    def __init__(self, perform: Callable[[str], None], folder: Path, options: Mapping[str, Any]) -> None:
        parameters = dict(options)
        self.task = Task(perform)
        self.executor = submitit.AutoExecutor(folder=folder, cluster=parameters.pop("cluster", "slurm"))
        try:
            self.executor.update_parameters(**parameters)
        except (NameError, TypeError, ValueError) as error:
            fix = "the parameters are those of submitit's AutoExecutor, as timeout_min and slurm_partition"
            raise UsageError(f"executor.slurm: {error}\nfix: {fix}") from error
        self.jobs: dict[str, Any] = {}

    def submit(self, jobs: Sequence[str]) -> None:
        """Submit an array of jobs."""
        if not jobs:
            return
        with self.executor.batch():
            submitted = [self.executor.submit(self.task, job) for job in jobs]
        self.jobs |= dict(zip(jobs, submitted, strict=True))

    def wait(self, seconds: float) -> list[Ended]:
        """Return the jobs that ended; waits at most `seconds` for the first."""
        deadline = time.monotonic() + seconds
        while not (done := [job for job, submitted in self.jobs.items() if submitted.done()]):
            if time.monotonic() >= deadline:
                return []
            time.sleep(POLL)
        return [_ended(job, self.jobs.pop(job)) for job in done]

    def running(self) -> list[str]:
        """Return the jobs that Slurm runs."""
        return [job for job, submitted in self.jobs.items() if submitted.state == "RUNNING"]

    def stop(self) -> None:
        """Cancel all jobs; a running one saves a checkpoint in the time that Slurm leaves it."""
        self.close()

    def close(self) -> None:
        """Cancel all jobs."""
        for submitted in self.jobs.values():
            submitted.cancel()
        self.jobs = {}


def _ended(job: str, submitted: Any) -> Ended:
    state = str(submitted.state)
    try:
        error = submitted.exception()
    except submitit.core.utils.UncompletedJobError as lost:
        error = lost
    if error is None:
        return Ended(job)
    return Ended(job, f"its Slurm job ended as {state}: {_last_line(str(error))}", out_of_memory="OUT_OF_ME" in state)


def _last_line(text: str) -> str:
    """Return the line of an error of submitit that says what happened: the last one of the traceback in it, if any."""
    _, ruled, trace = text.partition(f"{RULE}\n")
    lines = (trace.partition(f"\n{RULE}")[0] if ruled else text).strip().splitlines()
    return lines[-1].strip() if ruled and lines else next(iter(lines), "")
