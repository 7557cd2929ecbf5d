"""Modules stay small and have a subject: none is a collection of leftovers."""

import pytest


@pytest.fixture(scope="module")
def shipped(sources):
    """Return the files that a user gets; a test may be a long list of cases."""
    return [source for source in sources if not source.name.startswith("tests/")]


def test_no_module_has_400_lines(shipped):
    assert not [(source.name, lines) for source in shipped if (lines := source.text.count("\n")) >= 400]


def test_no_module_is_a_drawer(sources):
    drawers = {"utils", "util", "common", "helpers", "helper", "misc", "manager"}
    assert not [source.name for source in sources if drawers & set(source.name.removesuffix(".py").split("/"))]
