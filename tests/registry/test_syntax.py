"""Kind and description of plugins from the syntax trees of their files, which are never run."""

import sys

import pytest

from neoplug.hookspecs import HOOKS_OF_SECTION
from neoplug.registry import SPECS, Entry, answered, installed
from neoplug.registry.syntax import kind_of, summary

RAISES = "raise SystemExit('it runs')\n"
PACKAGE = {
    "__init__.py": RAISES + "from .losses import Hinge as Exported\nfrom . import bases\n",
    "losses.py": RAISES
    + '''
import seen_plugins.bases as b
from seen_plugins.bases import Base as Root
class Hinge(Root[int]):
    """One sided.

    More.
    """
class ByModule(b.Base):
    pass
class Outer:
    class Inner(b.Base):
        "Inside."
''',
    "bases.py": RAISES
    + '''"""Not a docstring."""
import typing
from neoplug import hookimpl as own
import neoplug
if typing.TYPE_CHECKING:
    from no_such_module import Missing
class Base(typing.Generic[typing.T], Missing, metaclass=no_such_name):
    @neoplug.hookimpl(specname="token_loss")
    def anything(self): ...
    @typing.final
    def edit_batch(self): ...
''',
    "circle.py": '"""A circle."""\nfrom seen_plugins.circle import Round\nclass A(B, B): pass\nclass B(A, A): pass\n',
    "wrong.py": '"""Fine."""\n\nclass Wrong(:\n',
    "bytes.py": "class Nul: '\0'\n",
    "deep.py": "x = " + "(" * 5000 + ")" * 5000 + "\n",
    "noisy.py": '"""Bad \\escape."""\nclass Noisy: pass\n',
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "seen_plugins"
    folder.mkdir()
    for name, text in PACKAGE.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    assert not [name for name in sys.modules if name.startswith("seen_plugins")]


def read(target):
    found = summary(Entry("seen", "seen-plugins", "1", target))
    return found.kind, found.description, found.fault


def test_every_built_in_plugin_is_of_a_kind_that_its_imported_class_fits():
    own = [entry for entry in installed() if entry.package == "neoplug"]
    assert own
    for entry in own:
        found, hooks = summary(entry), set(answered(entry.load())) & set(SPECS)
        assert found.kind == kind_of(hooks), entry
        assert hooks & set(HOOKS_OF_SECTION[found.kind])
        assert found.description
        assert not found.fault


@pytest.mark.parametrize(
    ("hooks", "kind"),
    [
        ((), ""),
        (("state_dict", "merge_adapter"), ""),
        (("add_adapter", "after_load", "on_step_end", "penalty"), "adapter"),
        (("make_optimizer", "param_groups"), "optimizer"),
        (("edit_batch", "after_load", "on_train_end"), "treatments"),
        (("edit_documents", "after_load"), "treatments"),
        (("on_step_end",), "probes"),
        (("penalty",), "treatments"),
    ],
)
def test_the_kind_is_the_section_whose_hooks_come_first(hooks, kind):
    assert kind_of(hooks) == kind


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("losses:Hinge", ("loss", "One sided.", "")),
        (":Exported", ("loss", "One sided.", "")),
        ("losses:ByModule", ("loss", "", "")),
        ("losses:Outer.Inner", ("loss", "Inside.", "")),
        ("losses:Outer", ("", "", "")),
        (":bases.Base", ("loss", "", "")),
        ("noisy:Noisy", ("", "Bad \\escape.", "")),
        ("losses:Hing", ("", "", "there is no class `Hing` in it; did you mean `Hinge`?")),
        ("losses:Outer.Iner", ("", "", "there is no class `Iner` in `Outer`")),
        ("circle:A", ("", "A circle.", "")),
        ("circle:Round", ("", "", "there is no class `Round` in it")),
        ("wrong:Wrong", ("", "", "syntax error in line 3: invalid syntax")),
        ("absent:Thing", ("", "", "there is no module seen_plugins.absent, or it has no file")),
    ],
)
def test_a_class_is_read_through_imports_without_running_them(package, target, expected):
    module, _, attribute = target.partition(":")
    assert read(f"{'.'.join(filter(None, ['seen_plugins', module]))}:{attribute}") == expected


@pytest.mark.parametrize("module", ["bytes", "deep"])
def test_what_cannot_be_parsed_is_a_fault_and_no_error(package, module):
    kind, description, fault = read(f"seen_plugins.{module}:Nul")
    assert (kind, description) == ("", "")
    assert fault


def test_a_compiled_module_and_one_without_a_file_have_no_description():
    assert read("_json:Scanner")[2] or read("math:Sum")[2]
    assert read("sys:Flags")[2] == "there is no module sys, or it has no file"


def test_an_entry_point_that_names_no_class_is_a_fault():
    assert read("only.a.module")[2] == "its entry point `only.a.module` names no class; the form is module:Class"
