"""docs/reference/families.md is the output of its command."""

import re
from pathlib import Path

from neoplug.testing.families import FAMILIES

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "families.md"


def tables():
    """Return each table as its lines of cells."""
    found = re.findall(r"(?:^\|.*\n)+", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [[[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()] for table in found]


def test_every_table_names_every_family():
    assert [[row[0] for row in table[2:]] for table in tables()] == [list(FAMILIES)] * 3


def test_the_page_has_the_layouts_of_the_tests():
    """Both attentions use the layout of these families' runs; the page names the attention of the others."""
    head, _, *rows = tables()[0]
    taken = {
        row[0]: {head[at].split(", ")[1] for at, cell in enumerate(row) if "\N{CHECK MARK}" in cell} for row in rows
    }
    others = {"bloom": {"padded"}, "falcon_h1": {"padded"}}
    assert taken == {family: others.get(family, {"varlen"}) for family in FAMILIES}


def test_the_page_names_its_command():
    text = PAGE.read_text(encoding="utf-8")
    assert "python benchmarks/families.py" in text
    for package in ("torch", "transformers", "peft", "bitsandbytes"):
        assert re.search(rf"\b{package} \d", text)
