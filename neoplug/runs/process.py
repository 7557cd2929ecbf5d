"""Isolation of the runs of one process: one runs at a time, and restores the process-global state that it changes."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from neoplug.distributed.world import accelerate_state_restored
from neoplug.environment.memory import start_measuring
from neoplug.errors import UsageError
from neoplug.seeds import generators_restored

_running = Lock()


@contextmanager
def isolated() -> Iterator[None]:
    """Admit one run, or evaluation of a run, at a time; on exit restore random generators and accelerate's state.

    The peak of memory begins again. Log levels, signal handlers and the verbosity of libraries are restored by the
    functions that change them.

    Raises:
        UsageError: a run is in progress in this process, in this or another thread.
    """
    if not _running.acquire(blocking=False):
        raise UsageError(
            "a run is in progress in this process already\n"
            "why: all threads of a process share random generators, the log and the devices\n"
            "fix: start it after the first has ended, or in a separate process"
        )
    try:
        start_measuring()
        with generators_restored(), accelerate_state_restored():
            yield
    finally:
        _running.release()
