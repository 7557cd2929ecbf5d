"""Conformance tests of sources of rows, on the rows that they yield.

from neoplug.testing import check_source

def test_mine(tmp_path):
    check_source(Mine(path=...))
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

from neoplug.data.ingest.sources import PluginRows
from neoplug.data.ingest.values import Reason, Row
from neoplug.files import content_hash, sha256_of
from neoplug.registry import Plugins
from neoplug.testing.hooks import global_seeds
from neoplug.testing.loss_examples import hook
from neoplug.testing.search import Broken, Kit, as_broken, properties_of

MOST_ROWS = 1000  # the first ones, which are read


def check_source(source: Any) -> None:
    """Test every property of plugins that implement `open_source`.

    Raises AssertionError for a property that does not hold.
    """
    SOURCE.hold(source, 0)


class SourceProperties:
    """The properties of sources: each method without underscore, which raises Broken where it does not hold."""

    def readable(self, source: Any) -> None:
        """It yields at least one row, and each is a map from column to value that JSON holds."""
        number = -1
        for number, row in enumerate(_rows(source)):
            if isinstance(row, str):
                raise Broken(f"row {number} has {row}")
            try:
                content_hash(row)
            except (TypeError, ValueError) as error:
                raise Broken(f"row {number} is not what JSON holds: {error}") from error
        if number < 0:
            raise Broken("it yields no row")

    def repeated(self, source: Any) -> None:
        """Read again it yields the same rows in the same order, whatever the state of the global generators."""
        opened = _opened(source)
        with global_seeds(0):
            first = list(_reading(opened))
        with global_seeds(1):
            _compare(list(_reading(opened)), first, "read again")

    def restarted(self, source: Any) -> None:
        """Each reading starts at the first row, also while another is under way and after one that was left."""
        whole = list(_rows(source))
        opened = _opened(source)
        left = _reading(opened)
        next(left, None)
        both = list(zip(_reading(opened), _reading(opened), strict=False))
        for number, which in enumerate(("first", "second")):
            _compare([pair[number] for pair in both], whole, f"in the {which} of two readings at once")

    def reopened(self, source: Any) -> None:
        """Another instance with the same options yields the same rows, and has the same identity."""
        one, other = _opened(source), _opened(source)
        _compare(list(_reading(other)), list(_reading(one)), "from another instance")
        if _identity(other) != _identity(one):
            raise Broken("another instance with the same options has another identity: what is stored is not found")

    def identified(self, source: Any) -> None:
        """Its identity is what JSON holds, and the same before and after the rows are read."""
        opened = _opened(source)
        before = _identity(opened)
        list(_reading(opened))
        if (after := _identity(opened)) != before:
            raise Broken(f"its identity is {after[1]} after {before[1]}")

    def separate(self, source: Any) -> None:
        """A row that is changed does not change what is read later."""
        opened = _opened(source)
        before = copy.deepcopy(list(_reading(opened)))
        for row in _reading(opened):
            if isinstance(row, dict):
                _change(row)
        _compare(list(_reading(opened)), before, "after its rows were changed")

    def untouched(self, source: Any) -> None:
        """It leaves the files of its options as they are."""
        files = [value for field in fields(source) if isinstance(value := getattr(source, field.name), Path)]
        before = {file: sha256_of(file) for file in files if file.is_file()}
        list(_rows(source))
        if changed := [file for file, digest in before.items() if sha256_of(file) != digest]:
            raise Broken(f"it changes {changed[0]}")


SOURCE = Kit("source", {}, once=properties_of(SourceProperties()))


def _opened(source: Any) -> PluginRows:
    """Open another instance of the source as a run does. Raises TypeError for a plugin without `open_source`."""
    name = type(source).__name__
    if hook(source, "open_source") is None:
        raise TypeError(f"{name} has no `open_source`")
    with as_broken():
        return PluginRows(Plugins({"data.source": {name: replace(source)}}).source("data.source"))


def _rows(source: Any) -> Iterator[Row | Reason]:
    return _reading(_opened(source))


def _reading(opened: PluginRows) -> Iterator[Row | Reason]:
    with as_broken():
        yield from islice(opened.rows(), MOST_ROWS)


def _identity(opened: PluginRows) -> Any:
    """Return the hash of the source's code, and its identity."""
    with as_broken():
        return opened.identity()


def _compare(found: list[Row | Reason], expected: list[Row | Reason], when: str) -> None:
    """Raise Broken where rows differ; `when` says of which reading those found are."""
    if len(found) != len(expected):
        raise Broken(f"{when} it yields {len(found)} rows in place of {len(expected)}")
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        if one != other:
            raise Broken(f"{when} row {number} is another")


def _change(value: Any) -> None:
    """Change a row, or a list or map in it."""
    items = value.values() if isinstance(value, dict) else value
    for inner in items:
        if isinstance(inner, dict | list):
            _change(inner)
    value.clear()
