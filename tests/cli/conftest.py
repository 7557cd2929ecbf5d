"""Fixtures for commands: a recipe that runs in seconds, and a third-party distribution."""

import sys
from pathlib import Path

import pytest


@pytest.fixture
def recipe(tmp_path, tiny_student, tiny_teacher, tiny_chat):
    """Return the path of a recipe that runs in seconds."""
    file = tmp_path / "tiny.yaml"
    file.write_text(
        f"""# A tiny recipe
teacher: {{model: {tiny_teacher}}}
student: {{model: {tiny_student}}}
data: {{source: {tiny_chat}, max_length: 64, packing: false, held_out: 4}}
adapter:
  lora: {{r: 4, target_modules: [q_proj, v_proj]}}
loss:
  cross_entropy: {{weight: 0.5}}
  forward_kl: {{weight: 0.5}}
train:
  num_train_epochs: 1
  per_device_train_batch_size: 2
  gradient_accumulation_steps: 2
  logging_steps: 2
""",
        encoding="utf-8",
    )
    return Path(file)


@pytest.fixture
def third_party(tmp_path, monkeypatch):
    """Install a third-party distribution with a working loss and a probe whose import fails."""
    site = tmp_path / "site"
    (site / "example_plugins-1.2.dist-info").mkdir(parents=True)
    (site / "example_plugins-1.2.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: example-plugins\nVersion: 1.2\n"
    )
    (site / "example_plugins-1.2.dist-info" / "entry_points.txt").write_text(
        "[neoplug]\nhinge = example_loss:Hinge\nbroken = example_broken:Broken\n"
    )
    (site / "example_loss.py").write_text(
        '''"""Hinge, for a test."""
from dataclasses import dataclass, field
from neoplug import hookimpl

@dataclass(eq=False)
class Hinge:
    """One sided."""

    margin: float
    power: int = 2
    names: list[str] = field(default_factory=list)

    @hookimpl
    def token_loss(self, student): return student
'''
    )
    (site / "example_broken.py").write_text("import no_such_module_anywhere\n")
    monkeypatch.syspath_prepend(str(site))
    yield site
    for name in ("example_loss", "example_broken"):
        sys.modules.pop(name, None)
