"""The examples of the docs: a loss in a local file, and a recipe that names it."""

import importlib.util
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.special import rel_entr, softmax

from neoplug import recipe
from neoplug.testing import check_loss

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def jeffreys():
    spec = importlib.util.spec_from_file_location("example_jeffreys", EXAMPLES / "jeffreys.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Jeffreys


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_loss_is_its_definition(jeffreys, temperature):
    student, teacher = np.random.default_rng(0).normal(scale=3, size=(2, 5, 7))
    p, q = softmax(teacher / temperature, -1), softmax(student / temperature, -1)
    expected = (rel_entr(p, q) + rel_entr(q, p)).sum(-1) / 2 * temperature**2
    log_q, log_p = (torch.from_numpy(logits).log_softmax(-1) for logits in (student, teacher))
    assert_allclose(jeffreys(temperature).token_loss(log_q, log_p), expected, rtol=1e-10)


def pages_with_the_loss():
    """Return {page: the code of its class Jeffreys}."""
    root = EXAMPLES.parent
    pages = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    blocks = [
        (page.name, code) for page in pages for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    ]
    return {name: code for name, code in blocks if "class Jeffreys" in code}


@pytest.mark.parametrize(("page", "code"), pages_with_the_loss().items(), ids=pages_with_the_loss())
def test_every_page_shows_the_same_loss(jeffreys, page, code):
    names = {"__name__": "shown"}
    exec(code, names)
    log_q, log_p = torch.randn(2, 5, 7, dtype=torch.float64).log_softmax(-1)
    for temperature in (1.0, 2.0):
        found, expected = (
            cls(temperature=temperature).token_loss(log_q, log_p) for cls in (names["Jeffreys"], jeffreys)
        )
        assert_allclose(found, expected, rtol=1e-12)


def test_the_loss_passes_the_conformance_kit(jeffreys):
    check_loss(jeffreys(temperature=2.0), max_examples=10)


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.name)
def test_every_example_is_a_recipe_without_mistakes(file, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert recipe.load(file).name == file.stem


@pytest.mark.parametrize("file", sorted(EXAMPLES.rglob("*.sbatch")), ids=lambda file: file.name)
def test_every_job_script_is_a_script_of_bash(file):
    subprocess.run(["bash", "-n", file], check=True)
    options = re.findall(r"^#SBATCH --([a-z-]+)=\S+$", file.read_text(), re.MULTILINE)
    assert {"nodes", "ntasks-per-node", "gpus-per-node"} <= set(options)
