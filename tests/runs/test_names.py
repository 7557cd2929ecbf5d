"""Names of plugins in whole runs: a class of an installed module, and one that a Python call gives."""

import hashlib
import importlib.metadata
import inspect
import sys
from dataclasses import dataclass

import pytest
import yaml

import neoplug
from neoplug import hookimpl
from neoplug.errors import RecipeError, UsageError
from neoplug.registry.consent import Consent
from neoplug_adapters.lora import LoRA
from tests.registry.conftest import Distribution
from tests.runs.conftest import PREAMBLE

LOSS = """
@dataclass(eq=False)
class Surprise:
    scale: float = 1.0

    @hookimpl
    def token_loss(self, student, labels):
        return -self.scale * student.gather(-1, labels[:, None])[:, 0]
"""


@dataclass(eq=False)
class Surprise:
    """The same loss; it counts its calls."""

    scale: float = 1.0
    calls = 0

    @hookimpl
    def token_loss(self, student, labels):
        type(self).calls += 1
        return -self.scale * student.gather(-1, labels[:, None])[:, 0]


class Adapter(LoRA):
    """An adapter that only this module has."""


def test_a_class_of_a_module_trains_as_the_same_class_of_a_file(lab, tmp_path_factory, monkeypatch):
    packages = tmp_path_factory.mktemp("packages")  # in the recipe's own folder, no consent would be needed
    (packages / "module_of_a_test").mkdir()
    (packages / "module_of_a_test" / "losses.py").write_text(PREAMBLE + LOSS)
    monkeypatch.syspath_prepend(packages)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    lab.plugin("losses", LOSS)
    name = "module_of_a_test.losses:Surprise"
    with pytest.raises(RecipeError, match=r"--trust python:module_of_a_test\.losses"):
        lab.run("asked", loss={name: {}})
    Consent(trust=["python:module_of_a_test.losses"])
    module = lab.run("module", loss={name: {"scale": 2.0}}, train={"max_steps": 2})
    file = lab.run("file", loss={"./losses.py:Surprise": {"scale": 2.0}}, train={"max_steps": 2})
    assert [line["loss"] for line in module.lines] == [line["loss"] for line in file.lines]
    assert name in yaml.safe_load((module.path / "recipe.yaml").read_text())["loss"]
    digest = hashlib.sha256((PREAMBLE + LOSS).encode()).hexdigest()
    assert module.lock["plugins"][f"loss.{name}"]["sha256"] == digest
    again = lab.run("again", module.path / "recipe.yaml")
    assert again.adapter_bytes == module.adapter_bytes


def test_a_given_class_trains_as_the_same_class_of_a_file(lab):
    lab.plugin("losses", LOSS)
    file = lab.run("file", loss={"./losses.py:Surprise": {"scale": 2.0}}, train={"max_steps": 2})
    recipe = lab.recipe("given", train={"max_steps": 2})
    neoplug.run(recipe, output=lab.folder / "given", plugins=[Surprise], loss={"Surprise": {"scale": 2.0}})
    given = lab.at("given")
    assert Surprise.calls > 0
    assert given.adapter_bytes == file.adapter_bytes
    record = {"package": __name__, "version": "", "target": f"{__name__}:Surprise"}
    digest = hashlib.sha256(inspect.getsource(Surprise).encode()).hexdigest()
    assert given.lock["plugins"]["loss.Surprise"] == record | {"sha256": digest}


def test_later_calls_need_the_class_again_and_say_so(lab):
    recipe = lab.recipe(loss={"Surprise": {}, "forward_kl": {}}, adapter={"Adapter": {"r": 4}}, train={"max_steps": 2})
    run, out, classes = lab.folder / "run", lab.folder / "out", [Surprise, Adapter]
    with pytest.raises(RecipeError, match=r"`neoplug.run\(..., plugins=\[Surprise\]\)`"):
        neoplug.run(recipe, output=run, plugins=[Adapter])
    result = neoplug.run(recipe, output=run, plugins=classes)
    assert neoplug.run(recipe, output=run, resume=True, plugins=classes) == result
    with pytest.raises(RecipeError, match="no plugin is named `Surprise`"):
        neoplug.run(recipe, output=run, resume=True)
    with pytest.raises(RecipeError, match=r"plugins=\[Adapter\]"):
        neoplug.export_model(run, out)
    neoplug.export_model(run, out, plugins=classes)
    with pytest.raises(RecipeError, match=r"plugins=\[Surprise\]"):
        neoplug.evaluate(run, run / "recipe.yaml")
    trained = neoplug.evaluate(run, run / "recipe.yaml", plugins=classes)["student"]
    exported = neoplug.evaluate(out, recipe, plugins=classes)["student"]
    assert trained["cross_entropy"] == pytest.approx(result["after"]["cross_entropy"], rel=1e-5)
    assert exported["cross_entropy"] == pytest.approx(result["after"]["cross_entropy"], rel=1e-4)


def test_a_changed_class_is_told_when_a_run_is_resumed(lab):
    @dataclass(eq=False)
    class Failing(Surprise):
        @hookimpl
        def on_step_end(self, step):
            if step == 2:
                raise KeyError("as a plugin that fails")

    @dataclass(eq=False)
    class Changed(Surprise):
        """Has another text."""

    Failing.__name__ = Changed.__name__ = "Surprise"
    recipe = lab.recipe(loss={"Surprise": {}}, train={"max_steps": 3, "save_steps": 1})
    with pytest.raises(neoplug.RunError):
        neoplug.run(recipe, output=lab.folder / "run", plugins=[Failing])
    neoplug.run(recipe, output=lab.folder / "run", resume=True, plugins=[Changed])
    log = (lab.folder / "run" / "log.txt").read_text(encoding="utf-8")
    assert "resuming although this changed since the run was started: plugins.loss.Surprise.sha256" in log


def test_a_given_class_with_a_shipped_name_is_refused_before_the_recipe_is_read(lab):
    shipped = type("forward_kl", (), {})
    with pytest.raises(UsageError, match="`forward_kl`, which is also a plugin of neoplug"):
        neoplug.run(lab.folder / "no-such.yaml", plugins=[shipped])


@pytest.mark.parametrize(
    ("points", "loss", "expected"),
    [
        ({"forward_kl": "json:tool"}, "forward_kl", "`forward_kl` is the plugin of neoplug; `json:forward_kl` is"),
        ({"Surprise": f"{__name__}:Surprise"}, "json:Surprise", "is a module of that name"),
    ],
)
def test_plan_says_what_else_a_name_could_mean(lab, monkeypatch, capsys, points, loss, expected):
    """A package that is called `json`, as the module is, registers the names of `points`."""
    from neoplug.cli import main

    found, package = importlib.metadata.entry_points, Distribution("json", points)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [*found(group=group), *package.entry_points])
    monkeypatch.setattr(sys, "argv", ["neoplug", "plan", str(lab.recipe(loss={loss: {}}))])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert expected in capsys.readouterr().out.partition("\nwarnings\n")[2]
