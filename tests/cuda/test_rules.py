"""The tests of `rules.py`, in a process of their own."""

import subprocess
import sys
from pathlib import Path

from tests.cuda.conftest import ROOT

RULES = Path(__file__).with_name("rules.py")
PROGRAM = """
import sys
from tests.cuda import library
library.load(sys.argv[1])
import pytest
sys.exit(pytest.main([sys.argv[2], "-n", "0", "-p", "no:cacheprovider"]))
"""


def test_the_rules_of_the_pretended_device(library_file):
    command = [sys.executable, "-c", PROGRAM, str(library_file), str(RULES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
