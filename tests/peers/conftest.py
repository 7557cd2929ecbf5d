"""Fixtures for tests of faults that other tools have: models, documents, losses and complete runs."""

import copy
import json

import numpy as np
import pytest
import torch

import neoplug
from neoplug.data.batch import Document
from neoplug.models.verify import head_name, language_model
from neoplug.models.vocabulary import Vocabulary
from neoplug.registry import Plugins
from neoplug.training.objective import Loss


@pytest.fixture(scope="session")
def tokens(tiny_tokenizer):
    """Return the number of tokens of the tiny tokenizer."""
    return len(tiny_tokenizer)


@pytest.fixture
def document(tokens):
    """Return a function that makes a document of random tokens; `scored` are the indices of its answer tokens."""

    def make(length, scored, row=0):
        mask = np.zeros(length, dtype=bool)
        mask[list(scored)] = True
        return Document(np.random.default_rng(row).integers(3, tokens, length), mask, row)

    return make


@pytest.fixture(scope="session")
def stored(tiny_student, tiny_teacher):
    from transformers import AutoModelForCausalLM

    folders = {"student": tiny_student, "teacher": tiny_teacher}
    return {role: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for role, path in folders.items()}


@pytest.fixture
def module(stored):
    """Return a function that returns a new copy of the tiny student or teacher, frozen, in evaluation mode."""
    return lambda role: copy.deepcopy(stored[role]).eval().requires_grad_(False)


@pytest.fixture
def model(module, tokens):
    """Return a function that wraps one of the two, or another model, as the objective uses it."""

    def make(role_or_module):
        base = module(role_or_module) if isinstance(role_or_module, str) else role_or_module
        return language_model(base, head_name(base), Vocabulary(tokens))

    return make


@pytest.fixture
def losses():
    """Return a function that makes the losses of a recipe: name -> (weight, plugin)."""

    def make(**named):
        plugins = Plugins({"loss": {name: plugin for name, (_, plugin) in named.items()}})
        values, gradients = plugins.functions("token_loss"), plugins.functions("token_gradient")
        return [Loss(name, weight, values[name], gradients.get(name)) for name, (weight, _) in named.items()]

    return make


@pytest.fixture
def run(tmp_path, tiny_student, tiny_teacher, tiny_chat):
    """Return a function that runs a small recipe with some sections changed; it returns the lines and the folder."""
    usual = {
        "student": {"model": str(tiny_student), "dtype": "float32"},
        "data": {"source": str(tiny_chat), "held_out": 2, "packing": False},
        "adapter": {"lora": {"r": 4}},
        "loss": {"cross_entropy": {}},
        "train": {"max_steps": 3, "learning_rate": 1e-2, "warmup_steps": 0, "save_steps": 99},
    }

    def finish(name="run", **sections):
        train = usual["train"] | sections.pop("train", {})
        (tmp_path / f"{name}.yaml").write_text(json.dumps(usual | sections | {"train": train}))
        neoplug.run(tmp_path / f"{name}.yaml", output=tmp_path / name)
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return lines, tmp_path / name

    return finish
