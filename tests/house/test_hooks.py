"""Hooks: each is called by the core, its arguments are documented, and map and docs agree with the code."""

import ast
import inspect
import re
from pathlib import Path

import pytest
from packaging.version import Version

from neoplug import __version__, hookspecs
from neoplug.registry import SPECS

ROOT = Path(__file__).parents[2]
CALLERS = {"each", "one", "functions", "ask"}  # the methods of `Plugins` that call a hook
LEGEND = inspect.getdoc(hookspecs).rpartition("\n\n")[2]  # the module's legend for all hooks
DUCK_TYPED = {"state_dict", "load_state_dict"}  # torch's Stateful: no hooks, but in the table
CHANGELOG = ROOT / "CHANGELOG.md"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def arguments(hook):
    return list(inspect.signature(SPECS[hook]).parameters)


def called(tree):
    """Yield the hooks that a module calls: the name is written in the call, or is a constant of the module."""
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CALLERS:
            for argument in node.args:
                name = getattr(argument, "value", None) or constants.get(getattr(argument, "id", None))
                if isinstance(name, str):
                    yield name


@pytest.mark.parametrize("hook", SPECS)
def test_every_hook_is_called_by_the_core(core, hook):
    assert hook in {name for source in core for name in called(source.tree)}


@pytest.mark.parametrize("hook", SPECS)
def test_every_argument_is_documented(hook):
    documented = inspect.getdoc(SPECS[hook]) or ""
    assert documented, "no docstring"
    missing = [name for name in arguments(hook) if not re.search(rf"\b{name}\b", documented + LEGEND)]
    assert not missing


@pytest.mark.parametrize("hook", SPECS)
def test_every_hook_is_in_the_map_of_the_run(hook):
    assert re.search(rf"\b{hook}\b", hookspecs.__doc__)


@pytest.mark.parametrize("hook", SPECS)
def test_every_hook_states_how_many_plugins_may_implement_it(hook):
    assert SPECS[hook].answers in ("all", "each loss", "exactly one", "at most one")


@pytest.mark.parametrize("hook", SPECS)
def test_every_hook_states_the_version_that_introduced_it(hook):
    added = SPECS[hook].version_added
    assert re.fullmatch(r"\d+\.\d+", added)
    assert Version(added) <= Version(__version__)
    assert re.search(rf"^## {re.escape(added)}\.0\b", CHANGELOG.read_text(encoding="utf-8"), re.MULTILINE)


def test_sections_name_only_hooks():
    assert set().union(*hookspecs.HOOKS_OF_SECTION.values()) <= set(SPECS)


def rows():
    """Yield (document, signature cell, answers cell) of each table in the docs whose first column is `hook`."""
    for document in DOCUMENTS:
        inside = False
        for line in document.read_text(encoding="utf-8").splitlines():
            cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
            inside = line.startswith("|") and (inside or cells[0] == "hook")
            if inside and "`" in cells[0]:
                yield document.name, cells[0], cells[1]


def test_the_hook_table_in_the_docs_agrees_with_the_code():
    table = {}
    for _, cell, answers in rows():
        for name, listed in re.findall(r"`(\w+)\(([^)]*)\)", cell):
            assert name not in table, f"{name} is listed twice"
            table[name] = ([part.strip() for part in listed.split(",") if part.strip()], answers)
    expected = {hook: (arguments(hook), SPECS[hook].answers) for hook in SPECS}
    assert {name: row for name, row in table.items() if name not in DUCK_TYPED} == expected
    assert [name for name in table if name in SPECS] == list(SPECS), "not in call order"
