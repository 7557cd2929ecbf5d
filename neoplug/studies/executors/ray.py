"""The executor for Ray: each job is a plain remote task, on a cluster that exists or on one of this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any

import ray

from neoplug.studies.executors.base import Ended


class Ray:
    """Runs jobs as tasks of Ray.

    perform  performs a job by its id; it is pickled
    options  `address` of a cluster (by default one is started on this machine), `cpus` and `gpus` of each job
    """

    detached = False
    capacity = inf

    def __init__(self, perform: Callable[[str], None], options: Mapping[str, Any]) -> None:
        if not ray.is_initialized():
            ray.init(address=options.get("address") or "local", log_to_driver=False, include_dashboard=False)
        # A lost task is handed out again by the study, which counts; Ray itself does not retry.
        self.task = ray.remote(num_cpus=options.get("cpus", 1), num_gpus=options.get("gpus", 0), max_retries=0)(
            _function(perform)
        )
        self.jobs: dict[Any, str] = {}

    def submit(self, jobs: Sequence[str]) -> None:
        """Submit a task for each job."""
        self.jobs |= {self.task.remote(job): job for job in jobs}

    def wait(self, seconds: float) -> list[Ended]:
        """Return the jobs that ended; waits at most `seconds` for the first."""
        done, _ = ray.wait(list(self.jobs), num_returns=1, timeout=seconds) if self.jobs else ([], [])
        return [_ended(self.jobs.pop(task), task) for task in done]

    def running(self) -> list[str]:
        """Return an empty list: Ray does not say which tasks have started without its dashboard."""
        return []

    def stop(self) -> None:
        """Cancel all tasks; a running one ends as at a SIGINT, after a checkpoint."""
        for task in self.jobs:
            ray.cancel(task)
        ray.wait(list(self.jobs), num_returns=len(self.jobs)) if self.jobs else None
        self.close()

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        self.jobs = {}
        ray.shutdown()


def _function(perform: Callable[[str], None]) -> Callable[[str], None]:
    """Return `perform` as a function, which is what Ray takes."""

    def study_job(job: str) -> None:
        perform(job)

    return study_job


def _ended(job: str, task: Any) -> Ended:
    try:
        ray.get(task)
    except Exception as error:
        cause = getattr(error, "cause", None)  # what the task raised
        what = f"{type(cause).__name__}: {cause}" if cause else str(error)
        first = next(iter(what.strip().splitlines()), type(error).__name__)
        return Ended(job, f"its Ray task was lost: {first}", isinstance(error, ray.exceptions.OutOfMemoryError))
    return Ended(job)
