"""The executor that prints: one command for each job, to be run anywhere that shares the study's directory."""

import shlex
from collections.abc import Sequence
from math import inf
from pathlib import Path

from neoplug.errors.text import escaped
from neoplug.studies.executors.base import Ended


class Printed:
    """Prints the commands of jobs on stdout."""

    detached = True
    capacity = inf

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def submit(self, jobs: Sequence[str]) -> None:
        """Print a command for each job."""
        for job in jobs:
            print(escaped(f"neoplug study {shlex.quote(str(self.folder))} --job {job}"), flush=True)

    def wait(self, seconds: float) -> list[Ended]:
        """Return an empty list: nothing is awaited."""
        return []

    def running(self) -> list[str]:
        """Return an empty list."""
        return []

    def stop(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
