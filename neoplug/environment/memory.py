"""Memory of this process: its peak, and an option of glibc's malloc that keeps freed memory in the process.

A training step allocates and frees the same large tensors again and again. By default glibc returns each to the system
and requests it again, page by page and filled with zeros: on a CPU this took a third of the time of the objective.
"""

import ctypes
import gc
import os
import platform
import re
import sys
from contextlib import suppress
from pathlib import Path

OUT_OF_MEMORY = ("DefaultCPUAllocator", "can't allocate memory")  # in errors of torch on a CPU
IMPORTS = 600_000_000  # bytes of Python, torch and transformers in a process that runs
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed() -> bool:
    """Make glibc's malloc keep freed memory; return False without glibc or where a MALLOC_* variable is set.

    It changes the whole process, so the command line calls it, not a run. The peak of memory in use does not change,
    but freed memory is not returned to the system before the process ends.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def start_measuring() -> None:
    """Free what earlier work in this process left, and let the peak begin again, where the system can (Linux)."""
    import torch

    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
        for number in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(number)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_resident() -> int:
    """Return the peak of resident memory in bytes, since `start_measuring` where the system can begin again."""
    with suppress(OSError):
        if found := re.search(rb"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_bytes(), re.MULTILINE):
            return int(found[1]) * 1024
    import resource  # absent on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_memory() -> int:
    """Return the bytes of main memory that a process may still take: what is free or can be freed, and its limit.

    The limit is that of its control group, as containers have one. Where neither is known, all memory of the machine.
    """
    from neoplug.environment.info import hardware

    free = hardware()["memory_bytes"] or sys.maxsize
    with suppress(OSError):
        if found := re.search(rb"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_bytes(), re.MULTILINE):
            free = min(free, int(found[1]) * 1024)
    with suppress(OSError, ValueError):
        limit, used = (Path("/sys/fs/cgroup", name).read_text() for name in ("memory.max", "memory.current"))
        free = min(free, int(limit) - int(used))
    return int(free)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out: of a GPU, or where the CPU's allocator was refused memory."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)
    )
