"""The interface of executors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

Memory = Callable[[str], int]  # job -> bytes that its run needs


@dataclass(frozen=True)
class Ended:
    """A job that an executor no longer works on; whether it is done, the ledger says.

    job            its id
    reason         why its process was lost; empty where it returned
    out_of_memory  the system ended the process for lack of memory
    """

    job: str
    reason: str = ""
    out_of_memory: bool = False


class Executor(Protocol):
    """Runs jobs by their ids. All methods are called from one thread.

    detached  nothing is awaited: `submit` says how to run the jobs, and they are run elsewhere
    """

    detached: bool

    @property
    def capacity(self) -> float:
        """How many jobs it takes on at a time, running or not."""

    def submit(self, jobs: Sequence[str]) -> None:
        """Take jobs on, in the order in which they are to start."""

    def wait(self, seconds: float) -> list[Ended]:
        """Return the jobs that ended since the last call; waits at most `seconds` for the first.

        Raises:
            RunError: no process can be started.
        """

    def running(self) -> list[str]:
        """Return the jobs that have started, as far as this is known, and not ended."""

    def stop(self) -> None:
        """Ask running jobs to save a checkpoint and end, wait for that, and start no other."""

    def close(self) -> None:
        """End all processes that are left, at once."""
