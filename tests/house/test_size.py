"""Small modules with one reason, short functions; the loop alone may be long, since order is its point."""

import ast
from statistics import median

import pytest

LONG = {("neoplug/training/loop.py", "distil")}


@pytest.fixture(scope="module")
def shipped(sources):
    """Return the files that a user gets; a test may be a long list of cases."""
    return [source for source in sources if not source.name.startswith("tests/")]


def functions(sources):
    """Yield (file, name, lines) of each function."""
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield source.name, node.name, node.end_lineno - node.lineno + 1


def test_no_module_has_400_lines(shipped):
    assert not [(source.name, lines) for source in shipped if (lines := source.text.count("\n")) >= 400]


def test_no_function_has_60_lines(shipped):
    assert not [found for found in functions(shipped) if found[2] >= 60 and found[:2] not in LONG]


def test_half_of_all_functions_have_less_than_ten_lines(shipped):
    assert median(lines for _, _, lines in functions(shipped)) < 10


def test_no_module_is_a_drawer(sources):
    drawers = {"utils", "util", "common", "helpers", "helper", "misc", "manager"}
    assert not [source.name for source in sources if drawers & set(source.name.removesuffix(".py").split("/"))]
