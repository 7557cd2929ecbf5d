"""Confinement of code while it is imported: it cannot end the process, move it, read its arguments, or print as it.

Later, when the code is called, `exits_refused` keeps it from ending the process as if the command were done. This
protects a command from mistakes and from tricks that are plain to see. It is no sandbox: the code runs with the
rights of the user.
"""

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from threading import RLock
from typing import IO, Any

from neoplug.errors import RunError, innermost
from neoplug.errors.text import escaped

SHOWN = 20  # lines of what is printed
WIDTH = 500  # characters of a line
ENDINGS = ("_exit", "abort", "execv", "execve")  # the other functions `exec...` call these
SIGNALS = ("kill", "killpg")
TO_ITSELF = "raise_signal"
_one_at_a_time = RLock()  # arguments and streams belong to the process


class EndedProcess(Exception):
    """Code of a plugin or a model tried to end the process."""


@contextmanager
def exits_refused() -> Iterator[None]:
    """Refuse that code of a plugin or a model ends the process: what it ends is not finished, whatever the status.

    Signals that it sends to the process are delivered: none of them looks like success.

    Raises:
        RunError: the code called sys.exit, os._exit, os.abort or os.exec....
    """
    try:
        with _kept_alive(ENDINGS):
            yield
    except (SystemExit, EndedProcess) as error:
        file, line, _ = innermost(error, outside=__file__)
        how = f"it calls sys.exit({error.code})" if isinstance(error, SystemExit) else str(error)
        what = f"code of a plugin or a model ends the command: {how}"
        raise RunError(f"{what}\nat: {file}:{line}\nfix: raise an exception there instead") from error


@contextmanager
def confined(name: str) -> Iterator[None]:
    """Confine the code that is imported in this block.

    sys.argv and stdin are empty in it, and the working folder is the same after it. What it prints, also by other
    processes that it starts, is printed on stderr at the end, escaped, each line as `NAME printed: LINE`.

    name  what the code is called in these lines

    Raises:
        EndedProcess: the code called sys.exit, os._exit, os.abort or os.exec..., or sent its own process a signal.
    """
    with _one_at_a_time, _scratch_file() as printed:
        try:
            alive = _kept_alive((*ENDINGS, *SIGNALS, TO_ITSELF))
            with _printing_to(printed.fileno()), _without_input(), _in_one_folder(), alive:
                yield
        except SystemExit as error:
            code = "" if error.code is None else repr(error.code)
            raise EndedProcess(f"it calls sys.exit({code})").with_traceback(error.__traceback__) from None
        finally:
            _show(name, printed)


def _scratch_file() -> IO[bytes]:
    """Return a temporary file, in memory where the system can: a full disk must not keep code from being imported."""
    return os.fdopen(os.memfd_create("printed"), "w+b") if hasattr(os, "memfd_create") else TemporaryFile()


@contextmanager
def _printing_to(handle: int) -> Iterator[None]:
    """Write what is printed in the block to the file `handle`.

    Code may keep the streams that it finds, as a logging handler does. These write to stdout and stderr by number, so
    that they work after the block.
    """
    before = sys.stdout, sys.stderr
    with ExitStack() as restore:
        for number, stream in ((1, before[0]), (2, before[1])):
            if stream is not None:
                stream.flush()
            restore.enter_context(redirected(number, handle))
        streams = [_stream(number) for number in (1, 2)]
        sys.stdout, sys.stderr = streams
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before
            for stream in filter(None, (*streams, sys.__stdout__, sys.__stderr__)):
                with suppress(OSError, ValueError):  # it is closed
                    stream.flush()


def _stream(number: int) -> IO[str]:
    return open(number, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)


@contextmanager
def _without_input() -> Iterator[None]:
    """Make sys.argv and stdin empty in the block."""
    before = sys.argv, sys.orig_argv, sys.stdin
    nothing = os.open(os.devnull, os.O_RDONLY)
    try:
        with redirected(0, nothing):
            sys.argv, sys.orig_argv, sys.stdin = ["neoplug"], ["neoplug"], io.StringIO()
            yield
    finally:
        sys.argv, sys.orig_argv, sys.stdin = before
        os.close(nothing)


@contextmanager
def _in_one_folder() -> Iterator[None]:
    """Return to the working folder after the block: relative paths, as of a run, mean the same as before."""
    try:
        before = Path.cwd()
    except OSError:  # it was removed
        yield
        return
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def redirected(number: int, handle: int) -> Iterator[None]:
    """Make the file descriptor `number` the same file as `handle` in the block."""
    try:
        before = os.dup(number)
    except OSError:  # it is closed
        before = None
    os.dup2(handle, number)
    try:
        yield
    finally:
        if before is None:
            os.close(number)
        else:
            os.dup2(before, number)
            os.close(before)


@contextmanager
def _kept_alive(refused: Sequence[str]) -> Iterator[None]:
    """Raise EndedProcess in place of the end of the process in the block; processes that it starts may end.

    refused  names of functions of `os` and `signal`

    A function that code keeps, as by `from os import kill`, works again after the block.
    """
    confining = [os.getpid()]
    system = sys.modules[os.name]  # `posix` or `nt`, from which `os` has these functions
    places = [(module, name) for module in (os, system, signal) for name in refused if hasattr(module, name)]
    before = [(module, name, getattr(module, name)) for module, name in places]
    for module, name, function in before:
        setattr(module, name, _refusing(function, name, confining))
    try:
        yield
    finally:
        confining.clear()
        for module, name, function in before:
            setattr(module, name, function)


def _refusing(function: Callable[..., Any], name: str, confining: list[int]) -> Callable[..., Any]:
    """Return `function` that raises EndedProcess where it would end the process, or send it a signal.

    confining  the number of the process; empty after the block
    """

    def refusing(*arguments: Any, **named: Any) -> Any:
        is_other = name in SIGNALS and arguments and arguments[0] not in (0, -1, os.getpid(), *_groups())
        is_probe = name in SIGNALS and arguments[1:] == (0,)
        if confining != [os.getpid()] or is_other or is_probe:
            return function(*arguments, **named)
        raise EndedProcess(f"it calls {'signal' if name == TO_ITSELF else 'os'}.{name}")

    return refusing


def _groups() -> tuple[int, ...]:
    """Return the numbers that name the group of this process, for `kill` and `killpg`."""
    return (os.getpgrp(), -os.getpgrp()) if hasattr(os, "getpgrp") else ()


def _show(name: str, printed: IO[bytes]) -> None:
    """Print on stderr what is in the file `printed`."""
    printed.seek(0)
    lines = [line for line in printed.read().decode(errors="replace").splitlines() if line.strip()]
    for line in lines[:SHOWN]:
        print(f"{escaped(name)} printed: {escaped(line[:WIDTH])}", file=sys.stderr)
    if len(lines) > SHOWN:
        print(f"{escaped(name)} printed {len(lines) - SHOWN:,} more lines", file=sys.stderr)
