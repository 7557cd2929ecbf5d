"""`neoplug check --package`: one line for each plugin of a package, and exit code 0, 1 or 2."""

import json

import pytest

LOSSES = """
from dataclasses import dataclass
from neoplug import hookimpl

@dataclass(eq=False)
class Right:
    @hookimpl
    def token_loss(self, student, teacher): return (teacher.exp() * (teacher - student)).sum(-1)

@dataclass(eq=False)
class Sized(Right):
    size: int

@dataclass(eq=False)
class Strict(Right):
    size: int = 0

    def __post_init__(self):
        if self.size < 1:
            raise ValueError("give `size`, at least 1")

@dataclass(eq=False)
class Mean(Right):
    @hookimpl
    def token_loss(self, student, teacher): return super().token_loss(student, teacher).mean()

@dataclass(eq=False)
class Bug(Right):
    def __post_init__(self): self.half = 1 / 0

@dataclass(eq=False)
class Probe:
    @hookimpl
    def on_evaluate(self, model): return {}

class Plain: pass
"""
RESULTS = {
    "absent": "fails",
    "bug": "fails",
    "mean": "fails",
    "plain": "fails",
    "probe": "passes",
    "sized": "needs options",
    "strict": "needs options",
}


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs a distribution with these classes of `checked_losses`, by the plugins' names."""
    (tmp_path / "checked_losses.py").write_text(LOSSES)
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(package, plugins):
        folder = tmp_path / f"{package.replace('-', '_')}-2.1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 2.1\n")
        points = "".join(f"{name} = checked_losses:{name.title()}\n" for name in plugins)
        (folder / "entry_points.txt").write_text(f"[neoplug]\n{points}" if points else "")

    return install


def test_every_plugin_of_a_package_is_checked_in_one_table(neoplug, install):
    install("checked-losses", RESULTS)
    answer = neoplug("check", "--package", "Checked.Losses", "--json")
    found = json.loads(answer.out)
    assert (answer.code, answer.err, found["package"], found["version"]) == (1, "", "checked-losses", "2.1")
    reports = {one["plugin"]: one for one in found["plugins"]}
    assert {name: one["result"] for name, one in reports.items()} == RESULTS
    alone = json.loads(neoplug("check", "probe", "--json").out)
    assert {key: reports["probe"][key] for key in alone} == alone
    words = {"absent": "no `Absent`", "mean": "shape", "sized": "`size`", "bug": "ZeroDivisionError"}
    assert not [name for name, part in words.items() if part not in reports[name]["why"]]


def test_the_table_names_each_result_and_its_reason(neoplug, install):
    install("cheap-checks", ["bug", "plain", "probe", "sized"])
    answer = neoplug("check", "--package", "cheap-checks")
    assert answer.code == 1
    first, _, *lines = answer.out.splitlines()
    assert first == "cheap-checks 2.1: 2 fails, 1 passes, 1 needs options"
    for name, line in zip(["bug", "plain", "probe", "sized"], lines, strict=False):
        assert line.startswith(f"{name} ")
        assert RESULTS[name] in line
    assert "ZeroDivisionError" in lines[0]
    assert "Plain is not a dataclass" in lines[1]
    assert lines[4:] == [f"`neoplug check cheap-checks:{name}` shows more" for name in ("bug", "plain")]


def test_a_package_without_a_failing_plugin_exits_0(neoplug, install):
    install("right-losses", ["sized", "probe"])
    assert neoplug("check", "--package", "right-losses").code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--package", "chekced-losses"], ["no package chekced-losses is installed", "did you mean `checked-losses`?"]),
        (["--package", "empty-package"], ["empty-package 2.1 registers no plugin", "fix: ", "checked-losses, neoplug"]),
        (["--package", ""], ["no package  is installed"]),
        (["probe", "--package", "checked-losses"], ["name a plugin or a package"]),
        ([], ["name a plugin or a package", "neoplug check --package NAME"]),
    ],
)
def test_a_package_without_plugins_exits_2_with_the_reason(neoplug, install, arguments, words):
    install("checked-losses", ["probe"])
    install("empty-package", [])
    answer = neoplug("check", *arguments)
    assert (answer.code, answer.out) == (2, "")
    for word in words:
        assert word in answer.err
