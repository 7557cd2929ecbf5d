"""docs/reference/commands.md shows the help texts that the commands print."""

import re
from pathlib import Path

import pytest

from neoplug.cli import COMMANDS

TEXT = (Path(__file__).parents[2] / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"```console\n\$ neoplug (.*)\n([^`]*)```", TEXT))


def letters(text):
    """Return the text without whitespace and the brackets of typer around names: <str>, [name], {name}."""
    return re.sub(r"<[^<>]*>|[\[\]{}\s]", "", text)


def test_every_command_has_its_help_in_the_docs():
    assert set(BLOCKS) == {"--help", *(f"{command.__name__} --help" for command in COMMANDS)}


@pytest.mark.parametrize("arguments", BLOCKS)
def test_the_help_in_the_docs_is_the_printed_one(neoplug, arguments):
    assert letters(BLOCKS[arguments]) == letters(neoplug(*arguments.split()).out)
