"""Freed memory is kept by the process: each page of a large block causes one page fault."""

import os
import platform
import subprocess
import sys

import pytest

COUNT = """
import resource
from neoplug.environment.memory import keep_freed

def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        bytearray(b"x") * 2**26
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(1)
returned, kept = faults(4), keep_freed()
faults(1)
print(kept, returned, faults(4))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="keep_freed needs glibc")
@pytest.mark.parametrize("chosen", [{}, {"MALLOC_ARENA_MAX": "1"}], ids=["by default", "set by the user"])
def test_a_block_is_requested_from_the_system_once(chosen):
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", COUNT], env=plain | chosen, capture_output=True, text=True, check=True)
    kept, before, after = done.stdout.split()
    assert kept == str(not chosen)
    assert int(before) > 2**26 // 2**16  # pages have 4 to 64 KiB
    assert (int(after) < int(before) / 10) == (not chosen)
