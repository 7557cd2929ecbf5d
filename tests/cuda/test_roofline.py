"""The operations that the roofline counts, against the products of the models' layers by their sizes."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LENGTH = 64
CODE = f"""
import roofline
roofline.load_pretended_gpu()
import gpu_arm
counted = roofline.step("bare", {LENGTH}, quick=True)["flops"]
print(counted, gpu_arm.useful_flops(*roofline.models(quick=True), {LENGTH}))
"""


@pytest.mark.usefixtures("library_file")
def test_counted_operations_are_those_of_the_layers():
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, cwd=ROOT / "benchmarks", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    counted, by_sizes = map(float, done.stdout.split())
    # The first of two layers needs no gradient of its input, and a document's last token is not scored: 3 % here.
    assert 0.9 * by_sizes < counted < by_sizes
