"""Freed memory, kept for the next block of its size.

A training step makes and frees the same large tensors again and again. glibc gives each back to the system and asks for
it anew, a page at a time and filled with zeros: on a CPU that took as long as a third of the objective's arithmetic.
"""

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed() -> bool:
    """Let this process keep what it frees from now on; say whether it does: under glibc, where nobody chose otherwise.

    The peak stays what it was, but what was freed after it is not returned before the process ends.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
