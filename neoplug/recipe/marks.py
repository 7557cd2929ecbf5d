"""YAML as plain values, each with the place it came from.

Text is read by events, so nothing is ever constructed: no tag runs code, no alias loops or explodes, no key is lost.
Scalars follow YAML 1.2's core schema: `1e-4` is a number, only `true` and `false` are booleans, `on` and `no` are text.
Knows nothing of recipes.
"""

import re
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from neoplug.errors import Mark, Problem
from neoplug.errors import Path as Key

MAX_CHARACTERS = 200_000
MAX_NODES = 5_000  # aliases count as often as they are used
MAX_DEPTH = 24
MAX_INTEGER = 2**63 - 1

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_BREAKS = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **{sign + word: float(f"{sign}inf") for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")},
}
BROKEN = object()  # stands for a value that has a problem of its own, until its parent leaves it out


@dataclass(frozen=True)
class Place:
    """Where a value was written.

    key     its key (in a list or at the root: the value itself)
    value   the value
    folder  where a relative path in it starts
    """

    key: Mark
    value: Mark
    folder: Path


@dataclass
class Tree:
    """Plain values and where each came from.

    places      of every key path, () being the whole
    broken      paths left out of `values` because they have a problem already
    removed     paths that a null took away (or would have, had they been there), and where it stands
    incomplete  what these values were to be laid over could not be read
    """

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Key, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    broken: set[Key] = field(default_factory=set)
    removed: dict[Key, Place] = field(default_factory=dict)
    incomplete: bool = False

    def get(self, path: Key) -> Any:
        """Return the value at `path`, or None where nothing stands."""
        here: Any = self.values
        for key in path:
            try:
                here = here[key]
            except (KeyError, IndexError, TypeError):
                return None
        return here

    def mark(self, path: Key, *, value: bool = False) -> Mark | None:
        """Return the mark of the key at `path` (of its value, if asked); else of its nearest ancestor's key.

        A null that took something away stands for it.
        """
        for length in range(len(path), -1, -1):
            if place := self.places.get(path[:length]) or self.removed.get(path[:length]):
                return place.value if value and length == len(path) else place.key
        return None

    def is_broken(self, path: Key) -> bool:
        """Say whether `path` lies in, or holds, something that has a problem already."""
        return any(path[: len(bad)] == bad or bad[: len(path)] == path for bad in self.broken)


@dataclass(frozen=True)
class Source:
    """A text to read: its name in messages, where its relative paths start, and what stands before it on its line."""

    text: str
    file: str
    folder: Path
    lead: str = ""
    line: int = 1

    @cached_property
    def lines(self) -> list[str]:
        """The text's lines as YAML counts them, fit to be printed: a column stays a column."""
        return [
            "".join(letter if letter.isprintable() else " " if letter == "\t" else "\ufffd" for letter in line)
            for line in _BREAKS.split(self.lead + self.text)
        ]

    def mark(self, line: int, column: int, length: int) -> Mark:
        """Make a mark from a 0-based line and column of `text`."""
        line = min(line, len(self.lines) - 1)
        column += len(self.lead) if line == 0 else 0
        whole = self.lines[line]
        return Mark(self.file, self.line + line, column + 1, max(1, min(length, len(whole) - column)), whole)


class _Stop(Exception):
    """Nothing after this can be read."""


def read(source: Source) -> tuple[Any, Tree]:
    """Read `source`: the value at its root (BROKEN if it cannot be read), and its tree (`values` if it is a map)."""
    reader = _Reader(source)
    value = reader.read()
    if isinstance(value, dict):
        reader.tree.values = value
    return value, reader.tree


def inside(path: Key, other: Key) -> bool:
    """Say whether `path` lies below `other`."""
    return len(path) > len(other) and path[: len(other)] == other


class _Reader:
    """Turns YAML events into values, one call of `node` a value; depth and size are bounded."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.tree = Tree()
        self.nodes = 0
        self.anchors: dict[str, tuple[Any, Key, int]] = {}  # name -> value, path, nodes in it
        self.open: set[str] = set()

    def read(self) -> Any:
        try:
            return self.document()
        except _Stop:
            pass
        except UnicodeError:
            self.problem("this is not UTF-8 text", self.source.mark(0, 0, 1), fix="save the file as UTF-8")
        except yaml.reader.ReaderError as error:
            self.problem(f"a character cannot be read: {error.reason}", self.at(error.position))
        except yaml.MarkedYAMLError as error:
            self.problem(*self.syntax(error))
        self.tree.broken.add(())
        return BROKEN

    def document(self) -> Any:
        if len(self.source.text) > MAX_CHARACTERS:
            self.stop(f"the text has more than {MAX_CHARACTERS:,} characters", self.source.mark(0, 0, 1))
        self.events = yaml.parse(self.source.text, Loader=_LOADER)
        value: Any = None
        self.tree.places[()] = self.place(self.source.mark(0, 0, 1))
        documents = 0
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self.stop("a second document begins here", self.mark(event), fix="keep one document in a file")
                value = self.node(next(self.events), (), None, 0)
        return value

    def node(self, event: Any, path: Key, key: Mark | None, depth: int) -> Any:
        mark = self.mark(event)
        if path:
            self.tree.places[path] = self.place(mark, key)
        self.nodes += 1
        if self.nodes > MAX_NODES:
            self.stop(f"more than {MAX_NODES:,} values", mark)
        if depth > MAX_DEPTH:
            self.stop(f"more than {MAX_DEPTH} levels deep", mark)
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, path, mark)
        if event.anchor:
            self.open.add(event.anchor)
        before = self.nodes
        value = self.content(event, path, depth, mark)
        if event.anchor:
            self.open.discard(event.anchor)
            self.anchors[event.anchor] = (value, path, self.nodes - before + 1)
        if event.tag is not None:
            return self.refuse(f"the tag `{self.excerpt(event)}` is not read", path, mark,
                               "a recipe is text: a tag could call code", "write the plain value")  # fmt: skip
        return value

    def content(self, event: Any, path: Key, depth: int, mark: Mark) -> Any:
        if isinstance(event, yaml.MappingStartEvent):
            return self.mapping(path, depth)
        if isinstance(event, yaml.SequenceStartEvent):
            return self.sequence(path, depth)
        return self.scalar(event, path, mark)

    def mapping(self, path: Key, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key, mark = self.key(event, path, depth)
            if key is None or key in values or (*path, key) in self.tree.broken:
                if key is not None:
                    first = self.tree.places[(*path, key)].key.line
                    self.problem(f"`{key}` stands twice; the first is in line {first}", mark, fix="keep one of them")
                self.skip(depth + 1)
                continue
            value = self.node(next(self.events), (*path, key), mark, depth + 1)
            if value is not BROKEN:
                values[key] = value
        return values

    def key(self, event: Any, path: Key, depth: int) -> tuple[str | None, Mark]:
        mark = self.mark(event)
        if isinstance(event, yaml.ScalarEvent) and event.tag is None and not event.anchor and event.value != "<<":
            return event.value, mark
        if isinstance(event, yaml.ScalarEvent) and event.value == "<<":
            self.problem("`<<` is not read", mark, fix="use `extends`, or write the keys out")
        else:
            self.problem("a key must be plain text", mark, fix="write a word, without tag, anchor or brackets")
        self.skip(depth + 1, event)
        return None, mark

    def skip(self, depth: int, event: Any = None) -> None:
        """Read a node and forget it; what is wrong inside of it goes with it."""
        saved, self.tree = self.tree, Tree()
        try:
            self.node(event or next(self.events), ("(skipped)",), None, depth)
        finally:
            self.tree = saved

    def sequence(self, path: Key, depth: int) -> list[Any]:
        values: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            value = self.node(event, (*path, len(values)), None, depth + 1)
            values.append(None if value is BROKEN else value)
        return values

    def scalar(self, event: Any, path: Key, mark: Mark) -> Any:
        text = event.value
        if not event.implicit[0]:  # quoted, or a block of text
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _INTEGER.fullmatch(text):
            return self.integer(text, path, mark)
        return float(text) if _FLOAT.fullmatch(text) else text

    def integer(self, text: str, path: Key, mark: Mark) -> Any:
        if len(text) <= 24:
            value = int(text, 0 if text[:2] in ("0o", "0x") else 10)
            if abs(value) <= MAX_INTEGER:
                return value
        return self.refuse(f"an integer of {len(text.lstrip('+-'))} digits is too large", path, mark,
                           "whole numbers have 64 bits here",
                           f"write at most {MAX_INTEGER}; a name made of digits stands in quotes")  # fmt: skip

    def alias(self, event: Any, path: Key, mark: Mark) -> Any:
        name = event.anchor
        if name in self.open:
            return self.refuse(f"the alias `*{name}` loops: it stands inside of what it names", path, mark)
        if name not in self.anchors:
            return self.refuse(f"no anchor `&{name}` stands above", path, mark)
        value, origin, nodes = self.anchors[name]
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            self.stop(f"the alias `*{name}` makes more than {MAX_NODES:,} values", mark)
        if value is BROKEN:
            self.tree.broken.add(path)
            return BROKEN
        for known in [known for known in self.tree.places if nodes > 1 and inside(known, origin)]:
            self.tree.places[path + known[len(origin) :]] = self.tree.places[known]
        return deepcopy(value)

    def refuse(self, what: str, path: Key, mark: Mark, why: str = "", fix: str = "") -> Any:
        self.problem(what, mark, why, fix)
        self.tree.broken.add(path)
        return BROKEN

    def problem(self, what: str, mark: Mark, why: str = "", fix: str = "") -> None:
        self.tree.problems.append(Problem(what, why, fix, mark=mark))

    def stop(self, what: str, mark: Mark, fix: str = "") -> None:
        self.problem(what, mark, fix=fix)
        raise _Stop

    def place(self, value: Mark, key: Mark | None = None) -> Place:
        return Place(key or value, value, self.source.folder)

    def mark(self, event: Any) -> Mark:
        start, end = event.start_mark, event.end_mark
        length = end.column - start.column if end.line == start.line else MAX_CHARACTERS
        return self.source.mark(start.line, start.column, length)

    def excerpt(self, event: Any) -> str:
        mark = self.mark(event)
        words = mark.text[mark.column - 1 :].split()
        return words[0] if words else "!"

    def at(self, position: int) -> Mark:
        before = _BREAKS.split(self.source.text[:position])
        return self.source.mark(len(before) - 1, len(before[-1]), 1)

    def syntax(self, error: yaml.MarkedYAMLError) -> tuple[str, Mark, str, str]:
        mark = error.problem_mark or error.context_mark
        what = f"this is not YAML: {error.problem or error.context}" + (
            f", {error.context} from line {self.source.line + error.context_mark.line}"
            if error.context and error.context_mark and error.problem
            else ""
        )
        fix = "write a space after the colon, as in {key: value}" if "unexpected ':'" in what else ""
        return what, self.source.mark(mark.line, mark.column, 1) if mark else self.source.mark(0, 0, 1), "", fix
