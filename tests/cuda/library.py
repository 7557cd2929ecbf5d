"""The library of `pretended.cpp`: compiled once for each version of torch, loaded before torch is imported.

This module imports neither torch nor anything that does.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

SOURCE = Path(__file__).with_name("pretended.cpp")


def missing():
    """Return why the library cannot be compiled here; None where it can."""
    if sys.platform != "linux":
        return "the order in which libraries are searched for a symbol is that of Linux"
    return None if shutil.which("g++") else "it needs the compiler g++"


def compiled(folder):
    """Return the library's file in `folder`, compiled unless it is there."""
    key = hashlib.sha256(SOURCE.read_bytes() + version("torch").encode()).hexdigest()[:16]
    file = Path(folder, f"pretended-{key}.so")
    if not file.exists():
        torch = Path(find_spec("torch").origin).parent
        draft = file.with_suffix(f".{os.getpid()}")  # another process may compile it too
        options = ["-shared", "-fPIC", "-std=c++20", f"-I{torch}/include"]
        linked = [f"-L{torch}/lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch}/lib"]
        subprocess.run(["g++", *options, str(SOURCE), "-o", str(draft), *linked], check=True)
        draft.replace(file)
    return file


def load(file):
    """Load the library into this process."""
    assert "torch" not in sys.modules, "torch must be imported after the library"
    ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
