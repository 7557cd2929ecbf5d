"""Complete runs on tiny models: a lab that writes recipes and plugin files, runs them, and reads the results."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest
import yaml
from safetensors.torch import load_file

import neoplug
from tests.commands import Command

CLOCK_AND_MEMORY = ("seconds", "tokens_per_second", "peak_memory_bytes")
PREAMBLE = """
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from neoplug import hookimpl
"""
DROP = """
@dataclass(eq=False)
class Drop:
    rows: list[int]

    @hookimpl
    def edit_batch(self, batch):
        keep = torch.tensor([int(row) not in self.rows for row in batch.rows], dtype=torch.bool)
        batch.positions, batch.labels, batch.rows = batch.positions[keep], batch.labels[keep], batch.rows[keep]
"""


@dataclass(frozen=True)
class Run:
    """A run directory, read with plain json and safetensors."""

    path: Path

    @property
    def lines(self):
        text = (self.path / "metrics.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    @property
    def facts(self):
        """The lines without the keys that may differ between two runs of one recipe."""
        return [{key: value for key, value in line.items() if key not in CLOCK_AND_MEMORY} for line in self.lines]

    @property
    def result(self):
        return json.loads((self.path / "result.json").read_text(encoding="utf-8"))

    @property
    def lock(self):
        return json.loads((self.path / "lock.json").read_text(encoding="utf-8"))

    @property
    def adapter_bytes(self):
        return (self.path / "adapter" / "adapter_model.safetensors").read_bytes()

    @property
    def adapter(self):
        return load_file(self.path / "adapter" / "adapter_model.safetensors")

    @property
    def steps_saved(self):
        return sorted(int(path.name.removeprefix("step-")) for path in self.path.glob("checkpoints/step-*"))

    @property
    def hidden_leftovers(self):
        """Half-written files and folders, anywhere in the run."""
        return [str(path.relative_to(self.path)) for path in self.path.rglob(".*")]


def cut(run, step):
    """Leave of a run what it had when it was killed after the checkpoint of a step."""
    (run.path / "result.json").unlink()
    for saved in ("adapter", "model"):
        shutil.rmtree(run.path / saved, ignore_errors=True)
    for later in run.steps_saved:
        if later > step:
            shutil.rmtree(run.path / "checkpoints" / f"step-{later}")


class Lab:
    """A folder with a base recipe; every method takes sections that replace the base's keys, one level deep."""

    def __init__(self, folder, student, teacher, chat):
        self.folder = Path(folder)
        self.base = {
            "teacher": {"model": str(teacher), "dtype": "float32"},  # tests compare more digits than bfloat16 has,
            "student": {"model": str(student), "dtype": "float32"},  # and some processors compute in bfloat16
            "data": {"source": str(chat), "max_length": 160, "packing": False, "held_out": 3},
            "adapter": {"lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]}},
            "loss": {"cross_entropy": {"weight": 0.5}, "forward_kl": {"weight": 2.0}},
            "train": {
                "max_steps": 6, "learning_rate": 0.01, "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 2, "save_steps": 2, "logging_steps": 3, "warmup_steps": 0,
            },
        }  # fmt: skip

    def plugin(self, name, body):
        """Write a plugin file in the folder of the recipes."""
        (self.folder / f"{name}.py").write_text(PREAMBLE + dedent(body), encoding="utf-8")

    def recipe(self, name="recipe", **sections):
        """Write a recipe; maps of plugins replace the base's, of other sections only the keys given; None removes."""
        whole = dict(self.base)
        for section, keys in sections.items():
            merged = section in ("teacher", "student", "data", "train") and keys is not None
            whole[section] = {**whole.get(section, {}), **keys} if merged else keys
        whole["train"] = {key: value for key, value in whole["train"].items() if value is not None}
        file = self.folder / f"{name}.yaml"
        whole = {section: keys for section, keys in whole.items() if keys is not None}
        file.write_text(yaml.safe_dump(whole, sort_keys=False), encoding="utf-8")
        return file

    def run(self, output, recipe=None, *, resume=False, **sections):
        """Run in this process."""
        file = recipe or self.recipe(f"{output}-recipe", **sections)
        neoplug.run(file, output=self.folder / output, resume=resume)
        return Run(self.folder / output)

    def at(self, output):
        """Return the run in a folder, in any state."""
        return Run(self.folder / output)

    def start(self, recipe, output, *options):
        """Start the command `neoplug run` in a separate process and return the process; `exitcode` is the command's."""
        return Command("run", recipe, "--output", self.folder / output, *options).start()


@pytest.fixture(scope="session")
def evaluation_chat(tmp_path_factory):
    """Return a jsonl file of 3 rows that no other fixture has."""
    pairs = [("Name a colour.", "Blue."), ("Say it twice.", "It it."), ("How are you?", "I am well, thank you.")]
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in pairs
    ]
    file = tmp_path_factory.mktemp("evaluation") / "evaluation.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def drop(lab):
    """Return the name of a treatment in the lab's folder that drops the answers of some rows."""
    lab.plugin("drop", DROP)
    return "./drop.py:Drop"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Return an empty folder for neoplug's cache."""
    monkeypatch.setenv("NEOPLUG_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def lab(tmp_path, tiny_student, tiny_teacher, tiny_chat):
    """Return a lab in a temporary folder of the test."""
    return Lab(tmp_path, tiny_student, tiny_teacher, tiny_chat)


@pytest.fixture(scope="module")
def module_lab(tmp_path_factory, tiny_student, tiny_teacher, tiny_chat):
    """Return a lab for runs that several tests of a module read."""
    return Lab(tmp_path_factory.mktemp("lab"), tiny_student, tiny_teacher, tiny_chat)
