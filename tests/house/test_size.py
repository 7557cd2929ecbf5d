"""Modules are small and have a subject: none is a collection of unrelated functions."""

import pytest


@pytest.fixture(scope="module")
def shipped(sources):
    """Return the files outside of tests/; a test may be a long list of cases."""
    return [source for source in sources if not source.name.startswith("tests/")]


def test_no_module_has_400_lines(shipped):
    assert not [(source.name, lines) for source in shipped if (lines := source.text.count("\n")) >= 400]


def test_no_module_has_a_name_without_a_subject(sources):
    names = {"utils", "util", "common", "helpers", "helper", "misc", "manager"}
    assert not [source.name for source in sources if names & set(source.name.removesuffix(".py").split("/"))]
