"""A finished run of a recipe with a plugin in a file, copies of it to tamper with, and the command line."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import neoplug
from neoplug.files.contents import record

PLUGIN = """
from dataclasses import dataclass
from pathlib import Path
from neoplug import hookimpl

Path(__file__).with_name("imported").touch()

@dataclass(eq=False)
class Half:
    @hookimpl
    def on_evaluate(self):
        return {"half": 0.5, "text": "held-out text"}
"""


@dataclass(frozen=True)
class Original:
    """A folder with a recipe's files and its finished run, read and changed with plain json and yaml."""

    folder: Path

    @property
    def run(self):
        return self.folder / "run"

    @property
    def recipe(self):
        return yaml.safe_load((self.run / "recipe.yaml").read_text())

    @property
    def lock(self):
        return json.loads((self.run / "lock.json").read_text())

    @property
    def steps(self):
        return [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]

    @property
    def result(self):
        return json.loads((self.run / "result.json").read_text())

    def write(self, *, recipe=None, lock=None, steps=None, result=None):
        """Replace files of the run, and record them: whoever writes the folder of a run writes its hashes too."""
        for name, text in {
            "recipe.yaml": recipe and yaml.safe_dump(recipe, sort_keys=False),
            "lock.json": lock and json.dumps(lock),
            "metrics.jsonl": steps and "".join(json.dumps(line) + "\n" for line in steps),
            "result.json": result and json.dumps(result),
        }.items():
            if text:
                (self.run / name).write_text(text)
                record(self.run, name)


@pytest.fixture(scope="module")
def first(tmp_path_factory, tiny_student, tiny_teacher, tiny_chat):
    """Return a run that no test changes."""
    folder = tmp_path_factory.mktemp("original")
    shutil.copytree(tiny_student, folder / "student")
    shutil.copy(tiny_chat, folder / "chat.jsonl")
    (folder / "own.py").write_text(PLUGIN)
    values = {
        "teacher": {"model": str(tiny_teacher), "dtype": "float32"},
        "student": {"model": "student", "dtype": "float32"},
        "data": {"source": "chat.jsonl", "max_length": 96, "packing": False, "held_out": 3},
        "adapter": {"lora": {"r": 2, "target_modules": ["q_proj"]}},
        "loss": {"cross_entropy": {"weight": 0.5}, "forward_kl": {"weight": 0.5}},
        "train": {"max_steps": 4, "learning_rate": 0.01, "per_device_train_batch_size": 2}
        | {"gradient_accumulation_steps": 2, "logging_steps": 4},
        "probes": {"./own.py:Half": {}},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    neoplug.run(folder / "recipe.yaml", output=folder / "run")
    return Original(folder)


@pytest.fixture
def original(first, tmp_path):
    """Return a copy of the run and its files: its recipe names these."""
    folder = shutil.copytree(first.folder, tmp_path / "original")
    (folder / "imported").unlink(missing_ok=True)
    copy = Original(folder)
    moved = (copy.run / "recipe.yaml").read_text().replace(str(first.folder), str(folder))
    copy.write(recipe=yaml.safe_load(moved))
    return copy


@pytest.fixture
def command(neoplug, monkeypatch, tmp_path):
    """Return a function that runs one command in an empty folder."""
    (tmp_path / "current").mkdir()
    monkeypatch.chdir(tmp_path / "current")
    return neoplug
