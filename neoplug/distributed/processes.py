"""The processes of a run: which of those on this machine have ended, and how."""

import os
import re
import signal
import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from torch.distributed import DistError


@dataclass(frozen=True)
class Process:
    """A process of a run."""

    rank: int
    host: str
    pid: int

    @classmethod
    def own(cls, rank: int) -> Self:
        """Return this process, which has `rank`."""
        return cls(rank, socket.gethostname(), os.getpid())

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"


@dataclass(frozen=True)
class Ended:
    """A process that has ended.

    status  its exit status, or the negative number of the signal that killed it; None: not known
    """

    process: Process
    status: int | None

    @property
    def signal(self) -> str:
        """The name of the signal that killed the process; empty where none did, or it is not known."""
        return signal.Signals(-self.status).name if self.status is not None and self.status < 0 else ""

    def __str__(self) -> str:
        if self.status is None:
            return f"{self.process} is gone"
        how = f"was killed by {self.signal}" if self.signal else f"ended with exit status {self.status}"
        return f"{self.process} {how}"


def ended(processes: Iterable[Process]) -> list[Ended]:
    """Return those that have ended; of processes on other machines, and on Windows, it is not known."""
    if sys.platform == "win32":  # os.kill would end the process
        return []
    host = socket.gethostname()
    found = (_end(process) for process in processes if process.host == host)
    return [end for end in found if end is not None]


def _end(process: Process) -> Ended | None:
    """Return how a process of this machine ended; None while it runs."""
    try:
        os.kill(process.pid, 0)
    except OSError:  # there is none, or the number belongs to another user's by now
        return Ended(process, None)
    try:
        stat = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # no Linux
        return None
    state, *_, status = stat.rpartition(")")[2].split()  # proc(5); its parent has not waited for a process in state Z
    return Ended(process, os.waitstatus_to_exitcode(int(status))) if state in "ZX" else None


def is_connection_error(error: BaseException | None) -> bool:
    """Return whether a collective operation raised `error`; gloo's errors have no type of their own."""
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def is_timeout(error: BaseException | None) -> bool:
    """Return whether a collective operation ended because not all processes took part in it in time."""
    return is_connection_error(error) and re.search(r"tim(ed|e) ?out", str(error), re.IGNORECASE) is not None
