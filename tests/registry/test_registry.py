"""Plugins: discovery without import, validation of what pluggy would ignore, calls in the order of names."""

import sys
from dataclasses import InitVar, dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neoplug import hookimpl, hookspecs
from neoplug.errors import RecipeError
from neoplug.registry import SPECS, Entry, Plugins, answered, class_problems, find, installed


def messages(function, *arguments):
    with pytest.raises(RecipeError) as error:
        function(*arguments)
    return [str(problem) for problem in error.value.problems]


def test_listing_imports_nothing(packages):
    packages(vendor={"b": "no_such_module:Class", "a": "json.tool:main"}, other={"a": "nowhere:A"})
    before = set(sys.modules)
    assert [(entry.name, entry.package, entry.version) for entry in installed()] == [
        ("a", "other", "1.2"), ("a", "vendor", "1.2"), ("b", "vendor", "1.2"),
    ]  # fmt: skip
    assert "json.tool" not in set(sys.modules) - before


def test_an_ambiguous_name_needs_the_package(packages, tmp_path):
    packages(first_vendor={"loss": "a:A"}, other={"loss": "b:B"})
    (message,) = messages(find, "loss", tmp_path)
    assert "`first-vendor:loss`" in message
    assert "`other:loss`" in message
    assert find("other:loss@hot", tmp_path).target == "b:B"
    assert find("First_Vendor:loss", tmp_path).target == "a:A"


def test_an_unknown_name_gets_a_suggestion_and_the_installed_names(packages, tmp_path):
    packages(vendor={"lora": "a:A", "dora": "b:B"})
    (message,) = messages(find, "lroa", tmp_path)
    assert "no plugin is named `lroa`; did you mean `lora`?" in message
    assert "installed: dora, lora" in message
    assert "did you mean `vendor:lora`?" in messages(find, "vendor:lorra", tmp_path)[0]


def test_a_shipped_name_stays_that_of_neoplug(packages, tmp_path):
    packages(neoplug={"loss": "a:A"}, vendor={"loss": "b:B", "other": "c:C"})
    entry = find("loss@hot", tmp_path)
    assert (entry.package, entry.target) == ("neoplug", "a:A")
    assert entry.note == "`loss` is the plugin of neoplug; `vendor:loss` is installed too"
    assert find("vendor:loss", tmp_path).target == "b:B"
    assert find("vendor:loss", tmp_path).note == find("other", tmp_path).note == ""


def test_a_class_of_a_module_is_a_plugin_unless_a_package_has_one_of_that_name(packages, tmp_path, monkeypatch):
    (tmp_path / "losses_of_mine").mkdir()
    (tmp_path / "losses_of_mine" / "own.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    packages(vendor={"lora": "a:A"})
    entry = find("losses_of_mine.own:Loss@hot", tmp_path)
    assert (entry.name, entry.target, entry.file) == ("Loss", "losses_of_mine.own:Loss", None)
    assert entry.load()().beta == 0.5
    (message,) = messages(find("losses_of_mine.own:Los", tmp_path).load)
    assert "losses_of_mine.own has no `Los`; did you mean `Loss`?" in message
    assert "no plugin is named `losses_of_mine.none:Loss`" in messages(find, "losses_of_mine.none:Loss", tmp_path)[0]
    packages(json={"tool": "a:A"})
    entry = find("json:tool", tmp_path)
    assert entry.target == "a:A"
    assert "is a module of that name" in entry.note


def test_only_near_names_are_listed(packages, tmp_path):
    packages(vendor={"lora": "a:A", "dora": "b:B", "prefix_tuning": "c:C"})
    assert "installed: dora, lora and 1 more" in messages(find, "lroa", tmp_path)[0]
    assert "installed: 3 plugins, none of a similar name" in messages(find, "zzz", tmp_path)[0]


@pytest.mark.parametrize("name", ["lora@a@b", "lora@", "lora@a b", "./x.py:A@b@c"])
def test_an_invalid_tag_is_refused(name, tmp_path, packages):
    packages(vendor={"lora": "a:A"})
    (message,) = messages(find, name, tmp_path)
    assert "tag" in message


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("no_such_module:A", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("pathlib:Pth", "AttributeError: pathlib has no `Pth`; did you mean `Path`?"),
        ("json:dumps", "`json:dumps` (its-package 3.4) is not a class"),
        ("json", "ValueError: `json` names no class; the form is module:Class"),
        ("", "cannot be imported"),
    ],
)
def test_an_import_error_names_its_cause_and_the_package(target, expected, packages, tmp_path):
    (message,) = messages(Entry("broken", "its-package", "3.4", target).load)
    assert expected in message
    assert "its-package 3.4" in message


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import a_library_that_is_not", "ModuleNotFoundError: No module named 'a_library_that_is_not'"),
        ("import sys; sys.exit(0)", "EndedProcess: it calls sys.exit(0)"),
        ("raise type('Panic', (BaseException,), {})('of a library')", "Panic: of a library"),
    ],
)
def test_an_import_error_of_a_package_names_the_line(source, fault, packages, tmp_path, monkeypatch):
    file = tmp_path / "a_module_that_fails.py"
    file.write_text(f'"""Its second line fails."""\n{source}\n')
    monkeypatch.syspath_prepend(tmp_path)
    packages(vendor={"failing": "a_module_that_fails:A"})
    (message,) = messages(find("failing", tmp_path).load)
    assert f"the plugin `failing` of vendor 1.2 cannot be imported: {fault} ({file}:2)" in message


def test_an_entry_point_may_name_extras(packages, tmp_path):
    packages(vendor={"path": "pathlib:Path [extra]"})
    assert find("path", tmp_path).load() is Path


PLUGIN = """from __future__ import annotations
from dataclasses import dataclass
from neoplug import hookimpl
RUNS = []
@dataclass(eq=False)
class Loss:
    beta: float = 0.5
    @hookimpl
    def token_loss(self, student):
        return self.beta
"""


def test_a_local_file_is_imported_without_side_effects(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    path = list(sys.path)
    entry = find("./mine.py:Loss@hot", tmp_path)
    assert entry.file == tmp_path / "mine.py"
    assert entry.load() is entry.load()
    assert entry.load()(beta=2.0).token_loss(None) == 2.0
    assert [file.name for file in tmp_path.iterdir()] == ["mine.py"]
    assert sys.path == path
    assert "mine" not in sys.modules


def test_a_local_file_that_changes_is_read_again_and_two_of_one_name_differ(tmp_path):
    (tmp_path / "a").mkdir()
    for folder in (tmp_path, tmp_path / "a"):
        (folder / "mine.py").write_text(PLUGIN)
    first, other = find("./mine.py:Loss", tmp_path).load(), find("./a/mine.py:Loss", tmp_path).load()
    assert first is not other
    (tmp_path / "mine.py").write_text(PLUGIN.replace("0.5", "0.7"))
    assert (first().beta, find("./mine.py:Loss", tmp_path).load()().beta) == (0.5, 0.7)


@pytest.mark.parametrize("body", ["raise SystemExit(3)", "1 / 0", "def", "import no_such_module", "\0"])
def test_a_local_file_that_cannot_be_imported_is_a_problem_each_time(body, tmp_path):
    (tmp_path / "mine.py").write_text(body)
    for _ in range(2):
        (message,) = messages(find("./mine.py:Loss", tmp_path).load)
        assert "cannot be imported" in message
        assert str(tmp_path / "mine.py") in message


@pytest.mark.parametrize("body", ["def broken(:", "1 / 0", "def f():\n    1 / 0\n\nf()"])
def test_an_error_in_a_local_file_names_its_line(body, tmp_path):
    """For an error in a function of the file, the line in that function, as at the end of a traceback."""
    (tmp_path / "mine.py").write_text(f"\n\n{body}\n")
    (message,) = messages(find("./mine.py:Loss", tmp_path).load)
    assert f"(mine.py, line {4 if 'f():' in body else 3})" in message
    assert message.count("line") == 1


@pytest.mark.parametrize("name", ["./none.py:A", "~nobody-has-this-name/x.py:A", "./\0.py:A", f"./{'x' * 5000}.py:A"])
def test_a_missing_file_is_a_problem(name, tmp_path):
    assert "there is no file" in messages(find, name, tmp_path)[0]


@dataclass(eq=False)
class Recorder:
    """Returns its option and the arguments that it gets."""

    value: object = None

    @hookimpl
    def on_evaluate(self, tokenizer):
        return [self.value, tokenizer]

    @hookimpl
    def on_step_end(self, model, step, name):
        return {name: step}


@dataclass(eq=False)
class First:
    @hookimpl(tryfirst=True)
    def on_evaluate(self):
        return "first"


@dataclass(eq=False)
class Last:
    @hookimpl(trylast=True)
    def on_evaluate(self, model):
        return model


@dataclass(eq=False)
class Renamed:
    @hookimpl(specname="on_evaluate")
    def cost(self, model):
        return model


@dataclass(eq=False)
class Loss:
    @hookimpl
    def token_loss(self, student):
        return student.sum(-1)

    @hookimpl
    def on_evaluate(self):
        return {}


@given(st.permutations(["a", "b@2", "b", "z", "m", "l"]), st.randoms())
def test_the_order_of_calls_is_the_order_of_names(names, random):
    classes = {"l": First, "m": Last}
    sections = {"probes": {}, "treatments": {}}
    for name in names:
        sections[random.choice(list(sections))][name] = classes.get(name, Recorder)()
    plugins = Plugins(sections)
    assert plugins.implements("on_evaluate") == ("l", "a", "b", "b@2", "z", "m")
    assert list(plugins.each("on_evaluate", model=1, tokenizer=0.5)) == ["l", "a", "b", "b@2", "z", "m"]


def test_each_returns_results_by_name_and_passes_only_the_arguments_taken():
    plugins = Plugins({"probes": {"x": Recorder(1)}, "treatments": {"f": First(), "r": Renamed()}})
    assert plugins.each("on_evaluate", model="model", tokenizer=0.5) == {"f": "first", "x": [1, 0.5], "r": "model"}
    assert plugins.each("on_step_end", step=1, model=None, metrics={}) == {"x": {"x": 1}}
    assert plugins.each("on_evaluate", section="probes", model=0, tokenizer=1) == {"x": [1, 1]}
    assert plugins.each("after_load", model=0, role="student") == {}
    assert plugins.section("probes").keys() == {"x"}
    assert plugins.section("loss") == {}


def test_one_returns_the_only_result_or_none():
    plugins = Plugins({"probes": {"x": Recorder()}, "treatments": {"f": First(), "l": Last()}})
    assert plugins.one("merge_adapter", model=1) is None
    assert Plugins({"probes": {"x": Recorder()}}).one("on_evaluate", tokenizer=1.0) == [None, 1.0]
    assert "x" in messages(lambda: plugins.one("on_evaluate", model=1, tokenizer=1.0))[0]


def test_labels_of_plugins_with_the_same_name_contain_the_section():
    plugins = Plugins(
        {"teacher.load": {"x": Recorder(1)}, "student.load": {"x": Recorder(2)}, "probes": {"y": Recorder(3)}}
    )
    answers = plugins.each("on_evaluate", tokenizer=0)
    assert answers == {"student.load.x": [2, 0], "teacher.load.x": [1, 0], "y": [3, 0]}
    assert plugins.each("on_evaluate", section="teacher.load", tokenizer=0) == {"x": [1, 0]}
    assert set(plugins.instances()) == {"student.load.x", "teacher.load.x", "y"}


def test_token_hooks_call_only_losses_by_their_names():
    plugins = Plugins({"loss": {"x": Loss()}, "probes": {"x": Loss(), "y": Loss()}})
    student = torch.zeros(2, 3, requires_grad=True)
    assert list(plugins.each("token_loss", student=student)) == ["x"]
    assert set(plugins.each("on_evaluate")) == {"loss.x", "probes.x", "y"}


def test_prepare_is_short_for_student_prepare():
    assert Plugins({"student.prepare": {"x": Recorder()}}).section("prepare").keys() == {"x"}


@dataclass(eq=False)
class Unmarked:
    def on_evaluate(self, model):
        return 0

    @hookimpl
    def penalty(self, model):
        return {}


class Child(Loss):
    def token_loss(self, student):  # hides the parent's hook
        return student


@dataclass(eq=False)
class Static:
    @staticmethod
    @hookimpl
    def on_evaluate(model):
        return model

    @property
    def explosive(self):
        raise AssertionError("the property was read")


def test_static_hooks_work_and_properties_are_not_read():
    assert class_problems(Static, "probes") == []
    assert Plugins({"probes": {"s": Static()}}).each("on_evaluate", model=3) == {"s": 3}


@dataclass(eq=False)
class Keyword:
    @hookimpl
    def on_evaluate(self, *, model):
        return model


@dataclass(eq=False)
class Greedy:
    @hookimpl
    def on_evaluate(self, **everything):
        return everything


@dataclass(eq=False)
class OldWrapper:
    @hookimpl(hookwrapper=True)
    def on_evaluate(self):
        yield


@dataclass(eq=False)
class Async:
    @hookimpl
    async def on_evaluate(self, model):
        return model


@dataclass(eq=False)
class Yielding:
    @hookimpl
    def on_evaluate(self, model):
        yield model


@dataclass(eq=False)
class Property:
    @property
    @hookimpl
    def on_evaluate(self):
        return lambda model: model


@dataclass(eq=False)
class Cached:
    @hookimpl
    @lru_cache  # noqa: B019
    def on_evaluate(self, model):
        return model


@dataclass(eq=False)
class Twice:
    @hookimpl
    def on_evaluate(self, model):
        return model

    @hookimpl(specname="on_evaluate")
    def another(self, model):
        return model


@dataclass(eq=False)
class WithOption(Loss):
    temperature: float = 1.0


@dataclass(eq=False)
class Initial(Loss):
    size: InitVar[int]


class Undecorated(WithOption):
    margin: float = 2.0


@dataclass(eq=False)
class WithoutAnnotation(WithOption):
    temperature = 2.0


class OnlyAConstant(WithOption):
    reads_teacher: ClassVar = "full"
    format = 2


def test_a_subclass_of_a_plugin_may_change_what_is_no_option():
    assert class_problems(OnlyAConstant, "loss") == []


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (Async, "Async.on_evaluate is async"),
        (Yielding, "Yielding.on_evaluate has a `yield`"),
        (Property, "Property.on_evaluate is marked @hookimpl, but is no method: it is a property"),
        (Cached, "Cached.on_evaluate is marked @hookimpl, but is no method"),
        (Twice, "Twice.another implements `on_evaluate`, and so does `on_evaluate`"),
        (Undecorated, "Undecorated is not a dataclass itself, so `margin` is no option of it"),
        (Initial, "Initial cannot be built without `size`, which is no option"),
        (WithoutAnnotation, "gives the option `temperature` the value 2.0 without an annotation"),
        (Unmarked, "Unmarked.on_evaluate is named like a hook, but is not marked"),
        (Child, "Child.token_loss is named like a hook, but is not marked"),
        (Keyword, "Keyword.on_evaluate must take `model` by position, without a default"),
        (Greedy, "Greedy.on_evaluate takes `everything`, which the hook does not have"),
        (OldWrapper, "OldWrapper.on_evaluate is a hook wrapper"),
    ],
)
def test_what_pluggy_and_dataclasses_ignore_is_refused(cls, expected):
    assert expected in messages(lambda: Plugins({"probes": {"x": cls.__new__(cls)}}))[0]
    assert expected in class_problems(cls)[0].what


def test_every_section_names_hooks_and_every_hook_how_many_may_implement_it():
    assert set(hookspecs.HOOKS_OF_SECTION) == {
        "source",
        "load",
        "cache",
        "prepare",
        "adapter",
        "loss",
        "optimizer",
        "schedule",
        "stops",
        "token_weights",
        "treatments",
        "probes",
        "trackers",
    }
    assert {hook for hooks in hookspecs.HOOKS_OF_SECTION.values() for hook in hooks} <= set(SPECS)
    assert all(spec.answers in ("all", "each loss", "exactly one", "at most one") for spec in SPECS.values())
    assert list(answered(Loss)) == ["on_evaluate", "token_loss"]


@dataclass(eq=False)
class TwoArguments:
    @hookimpl
    def on_evaluate(self, model, tokenizer):
        return tokenizer


@dataclass(eq=False)
class OneArgument:
    @hookimpl
    def on_evaluate(self, model):
        return 0.0


def lines_of(warnings):
    """Return (file, line) where each warning points."""
    return [(warning.filename, warning.lineno) for warning in warnings]


def test_a_deprecated_hook_warns_where_a_plugin_implements_it(monkeypatch):
    monkeypatch.setitem(SPECS["on_evaluate"].neoplug_spec, "warn_on_impl", DeprecationWarning("it goes in 0.3"))
    with pytest.warns(DeprecationWarning, match="it goes in 0.3") as found:
        plugins = Plugins({"probes": {"x": OneArgument()}})
    assert lines_of(found) == [(__file__, OneArgument.on_evaluate.__code__.co_firstlineno)]
    assert plugins.each("on_evaluate", model=None, tokenizer=0.5) == {"x": 0.0}, "it is still called"


def test_a_deprecated_argument_warns_only_where_a_plugin_requests_it(monkeypatch):
    warning = {"tokenizer": DeprecationWarning("tokenizer goes in 0.3")}
    monkeypatch.setitem(SPECS["on_evaluate"].neoplug_spec, "warn_on_impl_args", warning)
    with pytest.warns(DeprecationWarning, match="tokenizer goes in 0.3") as found:
        plugins = Plugins({"probes": {"one": OneArgument(), "two": TwoArguments()}})
    assert lines_of(found) == [(__file__, TwoArguments.on_evaluate.__code__.co_firstlineno)]
    assert plugins.each("on_evaluate", model=None, tokenizer=0.5) == {"one": 0.0, "two": 0.5}, "it is still passed"
