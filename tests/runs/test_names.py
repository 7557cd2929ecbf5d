"""Names of plugins in whole runs: a class of an installed module, as a file or a package of the recipe would be."""

import sys

import yaml

from tests.runs.conftest import PREAMBLE

LOSS = """
@dataclass(eq=False)
class Surprise:
    scale: float = 1.0

    @hookimpl
    def token_loss(self, student, labels):
        return -self.scale * student.gather(-1, labels[:, None])[:, 0]
"""


def test_a_class_of_a_module_trains_as_the_same_class_of_a_file(lab, tmp_path, monkeypatch):
    (tmp_path / "module_of_a_test").mkdir()
    (tmp_path / "module_of_a_test" / "losses.py").write_text(PREAMBLE + LOSS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    lab.plugin("losses", LOSS)
    name = "module_of_a_test.losses:Surprise"
    module = lab.run("module", loss={name: {"scale": 2.0}}, train={"max_steps": 2})
    file = lab.run("file", loss={"./losses.py:Surprise": {"scale": 2.0}}, train={"max_steps": 2})
    assert [line["loss"] for line in module.lines] == [line["loss"] for line in file.lines]
    assert name in yaml.safe_load((module.path / "recipe.yaml").read_text())["loss"]
    again = lab.run("again", module.path / "recipe.yaml")
    assert again.adapter_bytes == module.adapter_bytes
