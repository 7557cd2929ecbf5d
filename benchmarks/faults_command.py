"""A command in a forked process: its answer, processor time and memory; a fork has all imports done."""

import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

MEBIBYTE = 2**20
MEMORY = 2_000 * MEBIBYTE  # address space that a command may add: a limit for this machine, not the promise
SECONDS = 240  # until a command is killed, on a machine that does other work too


class Answer(NamedTuple):
    """What a command answered, and what it used."""

    code: int  # the exit status; negative for a signal
    out: str
    err: str
    seconds: float  # of the processor
    megabytes: float  # of resident memory, above that of the process at its start

    @property
    def is_traceback(self) -> bool:
        """Return whether an exception reached the user."""
        return "Traceback (most recent call last)" in self.out + self.err

    @property
    def last_line(self) -> str:
        """Return the last line of stderr, as the short form of a failure."""
        return next(reversed(self.err.strip().splitlines()), "")[:200]


def neoplug(*words: object) -> Callable[[], None]:
    """Return the function that runs a command line."""

    def run() -> None:
        from neoplug.cli import main

        sys.argv = ["neoplug", *map(str, words)]
        main()

    return run


def answer(call: Callable[[], object]) -> Answer:
    """Return what a call answers in a forked process."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as start:
        sys.stdout.flush()
        if not (child := os.fork()):
            start.write(b"%d" % _resident())
            start.flush()
            _become(call, (out, err))
        _, status, usage = os.wait4(child, 0)
        before, *texts = [_text(stream) for stream in (start, out, err)]
    seconds = usage.ru_utime + usage.ru_stime
    megabytes = (usage.ru_maxrss * 1024 - int(before)) / 1e6
    return Answer(os.waitstatus_to_exitcode(status), *texts, seconds, megabytes)


def _become(call: Callable[[], object], streams: Sequence[IO[bytes]]) -> None:
    """Make the call in this process, the child, and end it."""
    code = 70
    try:
        for number, stream in enumerate(streams, 1):
            os.dup2(stream.fileno(), number)
        limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        signal.alarm(SECONDS)
        call()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _resident() -> int:
    """Return the bytes of resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode(errors="replace")
