"""Limits of what a row may take: the length of its text, and the processor time and memory of its rendering."""

import mmap
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

# The tokenizer of Hugging Face takes about 220 bytes a character, and a row is tokenised whole, since pieces do not
# have the same tokens in general: 1.8 GB. The longest novels have 5 million characters.
LONGEST = 8 * 2**20  # characters of a row
SECONDS = 10.0  # of the processor, to render a row: a busy machine changes nothing; templates take milliseconds
MEMORY = 2 * 2**30  # bytes that rendering a row may take

TOO_LONG = f"more than {LONGEST:,} characters"


class LimitError(Exception):
    """A template took more than a limit to render a row."""


def characters(value: Any) -> int:
    """Return the number of characters in all texts of a row's values."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(characters, value.values()))
    return sum(map(characters, value)) if isinstance(value, list | tuple) else 0


@contextmanager
def render_limits() -> Iterator[None]:
    """Limit the time and memory of the block. Raises LimitError where it takes more.

    An alarm ends loops and arithmetic that have no end, and a limit of the process's address space ends growth,
    whatever the template does. An alarm needs POSIX and the main thread, the other limit Linux: elsewhere, none holds.
    """
    with _limited_time(), _limited_memory():
        yield


@contextmanager
def _limited_time() -> Iterator[None]:
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGVTALRM, _out_of_time)
    delay, interval = signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS, 1.0)  # again: a finalizer may swallow the error
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, delay, interval)
        signal.signal(signal.SIGVTALRM, handler)


def _out_of_time(number: int, frame: FrameType | None) -> NoReturn:
    raise LimitError(f"takes longer than {SECONDS:.0f} seconds")


@contextmanager
def _limited_memory() -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    present = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([_address_space() + MEMORY, *present]), hard))
    try:
        yield
    except MemoryError as error:
        raise LimitError(f"takes more than {MEMORY / 2**30:.0f} GB of memory") from error
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int:
    """Return the size of this process's address space in bytes, on Linux."""
    file = os.open("/proc/self/statm", os.O_RDONLY)  # for each rendering: 5 microseconds, a Path takes 20
    try:
        return int(os.read(file, 100).split()[0]) * mmap.PAGESIZE
    finally:
        os.close(file)
