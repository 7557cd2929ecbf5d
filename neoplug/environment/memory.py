"""An option of glibc's malloc that keeps freed memory in the process.

A training step allocates and frees the same large tensors again and again. By default glibc returns each to the system
and requests it again, page by page and filled with zeros: on a CPU this took a third of the time of the objective.
"""

import ctypes
import os
import platform

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
