"""Plugin classes that a Python call gives, as a notebook does, and the source by which a lock identifies a plugin."""

import hashlib
import inspect
import linecache
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from neoplug import hookimpl
from neoplug.errors import RecipeError, UsageError
from neoplug.registry import find, given_classes, source_of

MODULE = "class Loss: pass\n"


@dataclass(eq=False)
class Loss:
    """A plugin of this module."""

    beta: float = 0.5

    @hookimpl
    def token_loss(self, student):
        return self.beta


def test_a_given_class_is_a_plugin_by_its_name_while_the_context_lasts(packages, tmp_path):
    packages(neoplug={"lora": "a:A"})
    with given_classes([Loss]):
        entry = find("Loss@hot", tmp_path)
        assert entry.load() is Loss
        assert (entry.package, entry.version, entry.note) == (__name__, "", "")
        with pytest.raises(RecipeError, match=r"did you mean `Loss`\?"):
            find("Los", tmp_path)
        with given_classes([]), pytest.raises(RecipeError):
            find("Loss", tmp_path)
        assert find("Loss", tmp_path).load() is Loss
    fix = "the class of a notebook is given in Python, `neoplug.run(..., plugins=[Loss])`"
    with pytest.raises(RecipeError, match=re.escape(fix)):
        find("Loss", tmp_path)


def test_a_package_that_is_installed_later_does_not_change_a_given_class(packages, tmp_path):
    packages(neoplug={"lora": "a:A"}, vendor={"Loss": "b:B"}, other={"Loss": "c:C"})
    with given_classes([Loss]):
        entry = find("Loss", tmp_path)
        assert entry.load() is Loss
        assert "`other:Loss` is installed too and `vendor:Loss` is installed too" in entry.note
        assert find("vendor:Loss", tmp_path).target == "b:B"


def test_what_cannot_be_given_is_refused(packages):
    packages(neoplug={"Loss": "a:A"}, vendor={"other": "b:B"})
    for classes, expected in (
        ([Loss], "a class `Loss`, which is also a plugin of neoplug"),
        ([Path, Path], "a class `Path`, which is also another class of it"),
        (["Loss"], "`plugins` has 'Loss', which is no class"),
    ):
        with pytest.raises(UsageError, match=re.escape(expected)), given_classes(classes):
            pass


def test_the_hash_of_what_has_no_version_is_that_of_its_source(packages, tmp_path, monkeypatch):
    (tmp_path / "losses_of_theirs.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    packages(vendor={"loss": "losses_of_theirs:Loss"})
    digest = hashlib.sha256(MODULE.encode()).hexdigest()
    assert find("losses_of_theirs:Loss", tmp_path).sha256 == digest
    assert find("./losses_of_theirs.py:Loss", tmp_path).sha256 == digest
    assert find("vendor:loss", tmp_path).sha256 is None
    with given_classes([Loss]):
        text = inspect.getsource(Loss)
        assert find("Loss", tmp_path).sha256 == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("body", ["return 1", "return 2"])
def test_the_source_of_a_class_of_a_notebook_is_that_of_its_methods(body, monkeypatch):
    """A notebook compiles a cell under a name that only `linecache` has a text for."""
    method = f"    def method(self):\n        {body}\n"
    cell = f"class Cell:\n    limit = 3\n{method}"
    monkeypatch.setitem(linecache.cache, "<cell>", (len(cell), None, cell.splitlines(keepends=True), "<cell>"))
    scope = {"__name__": "no_such_module"}
    exec(compile(cell, "<cell>", "exec"), scope)
    assert source_of(scope["Cell"]) == method
    exec("class Bare: pass", scope)
    assert source_of(scope["Bare"]) is None
