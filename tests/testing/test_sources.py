"""`check_source`: it passes correct sources, names what is wrong with others, and holds the built-in one."""

import re
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from neoplug import OptionError, Source, hookimpl
from neoplug.registry import build, find
from neoplug.testing import SOURCE, check_source, examine

ROWS = [{"text": f"row {number}"} for number in range(5)]
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "sources.md"
_numbers = count()


@dataclass(eq=False)
class Rows:
    """Yields rows that a test gives."""

    read: object = lambda: iter(ROWS)
    identity: object = lambda: [1, {"a": None}]

    @hookimpl
    def open_source(self):
        return Source(lambda: map(dict, self.read()), self.identity)


@dataclass(eq=False)
class AsRead(Rows):
    @hookimpl
    def open_source(self):
        return Source(self.read, self.identity)


@dataclass(eq=False)
class Once(Rows):
    """Rows that can be read once."""

    @hookimpl
    def open_source(self):
        rows = map(dict, ROWS)
        return Source(lambda: rows, self.identity)


@dataclass(eq=False)
class Shared(Rows):
    """The same maps at each reading."""

    @hookimpl
    def open_source(self):
        rows = [{"messages": [{"role": "user"}]}]
        return Source(lambda: rows, self.identity)


@dataclass(eq=False)
class Edits(Rows):
    file: Path = Path()

    @hookimpl
    def open_source(self):
        self.file.write_text(f"{next(_numbers)}")
        return super().open_source()


@dataclass(eq=False)
class Answers(Rows):
    answer: object = None

    @hookimpl
    def open_source(self):
        return self.answer


def broken(plugin):
    """Return {property that does not hold: why}."""
    return {one.name: one.why for one in examine(plugin, SOURCE) if one.verdict != "holds"}


def numbered():
    return ({"text": str(next(_numbers))} for _ in range(3))


def wrong_option():
    raise OptionError("limit", "`limit` is too small")


def test_a_correct_source_passes():
    check_source(Rows())
    assert broken(Rows()) == {}


@pytest.mark.parametrize(
    ("plugin", "name", "words"),
    [
        (Rows(lambda: []), "readable", "it yields no row"),
        (Rows(lambda: [{"text": b"x"}]), "readable", "row 0 is not what JSON holds"),
        (Rows(lambda: [*ROWS, {"text": float("nan")}]), "readable", "row 5 is not what JSON holds"),
        (Rows(lambda: [{"text": "half \ud800"}]), "readable", "row 0 has half a character"),
        (AsRead(lambda: [*ROWS, "a text"]), "readable", "the row `5`, which is a str, where a map"),
        (AsRead(lambda: [{1: "a"}]), "readable", "a map from column to value is expected"),
        (AsRead(lambda: None), "readable", "with None, where rows are expected"),
        (AsRead(lambda: "text"), "readable", "with a str, where rows are expected"),
        (AsRead(lambda: 1 / 0), "readable", "failed in `open_source`: ZeroDivisionError"),
        (Rows(wrong_option), "readable", "`limit` is too small"),
        (Rows(numbered), "repeated", "read again row 0 is another"),
        (Once(), "repeated", "read again it yields 0 rows in place of 5"),
        (Once(), "restarted", "in the first of two readings at once it yields"),
        (Rows(identity=lambda: next(_numbers)), "identified", "its identity is"),
        (Rows(identity=lambda: None), "identified", "where what identifies the rows is expected"),
        (Rows(identity=object), "identified", "where a number, text, a list or a map is expected"),
        (Rows(identity=lambda: float("nan")), "identified", "with NaN or infinity"),
        (Shared(), "separate", "after its rows were changed"),
        (Answers(), "readable", "answered `open_source` with None, where an object"),
        (Answers(answer=[1]), "readable", "with a list, where an object with the methods `rows` and `identity`"),
    ],
)
def test_a_fault_is_named(plugin, name, words):
    assert words in broken(plugin)[name]
    with pytest.raises(AssertionError):
        check_source(plugin)


def test_a_changed_file_is_named(tmp_path):
    file = tmp_path / "rows.txt"
    file.write_text("")
    assert broken(Edits(file=file)) == {"untouched": f"it changes {file}"}


def test_the_built_in_source_has_every_property(tmp_path):
    with closing(sqlite3.connect(tmp_path / "a.db")) as opened:
        opened.execute('CREATE TABLE t AS SELECT value AS text FROM json_each(\'["a", "b", "c"]\')')
        opened.commit()
    check_source(build(find("sqlite", tmp_path).load(), {"path": str(tmp_path / "a.db"), "query": "SELECT * FROM t"}))


def test_the_source_of_the_page_has_every_property(tmp_path):
    (tmp_path / "sums.py").write_text(re.search(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)[1])
    check_source(build(find("./sums.py:Sums", tmp_path).load(), {"limit": 3}))
