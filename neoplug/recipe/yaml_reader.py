"""YAML as a tree of values with their places.

Text is composed to nodes and never constructed: no tag runs code, no alias loops or explodes, no key is lost.
Scalars follow YAML 1.2's core schema: `1e-4` is a number, only `true` and `false` are booleans, `on` and `no` are text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.resolver import BaseResolver

from neoplug.errors import Mark, Problem
from neoplug.recipe.tree import BROKEN, MAX_DEPTH, MAX_INTEGER, Node, Tree

MAX_CHARACTERS = 200_000
MAX_NODES = 5_000  # aliases count as often as they are used

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
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


@dataclass(frozen=True)
class Source:
    """A text to read: its name in messages, where its relative paths start, and what precedes it on its line."""

    text: str
    file: str
    folder: Path
    lead: str = ""
    line: int = 1

    @cached_property
    def lines(self) -> list[str]:
        """The text's lines as YAML counts them; each character that cannot be printed is replaced by one that can."""
        return [
            "".join(letter if letter.isprintable() else " " if letter == "\t" else "\ufffd" for letter in line)
            for line in _BREAKS.split(self.lead + self.text)
        ]

    def mark(self, line: int = 0, column: int = 0, length: int = 1) -> Mark:
        """Make a mark from a 0-based line and column of `text`."""
        line = min(line, len(self.lines) - 1)
        column += len(self.lead) if line == 0 else 0
        whole = self.lines[line]
        return Mark(self.file, self.line + line, column + 1, max(1, min(length, len(whole) - column)), whole)

    def span(self, start: Any, end: Any) -> Mark:
        """Make a mark from two of yaml's; where the second is in another line, the mark ends with the first's line."""
        length = end.column - start.column if end.line == start.line else MAX_CHARACTERS
        return self.mark(start.line, start.column, length)


def read(source: Source) -> Tree:
    """Read a text; its mistakes are the tree's `problems`, and its root is BROKEN where nothing could be read."""
    reader = _Reader(source)
    try:
        root = reader.document()
    except _Stop as stop:
        reader.problems.append(stop.problem)
    except UnicodeError:
        reader.problems.append(Problem("this is not UTF-8 text", fix="save the file as UTF-8", mark=source.mark()))
    except yaml.reader.ReaderError as error:
        before = _BREAKS.split(source.text[: error.position])
        mark = source.mark(len(before) - 1, len(before[-1]))
        reader.problems.append(Problem(f"a character cannot be read: {error.reason}", mark=mark))
    except yaml.MarkedYAMLError as error:
        reader.problems.append(_syntax_problem(error, source))
    else:
        return Tree(root, reader.problems)
    return Tree(Node(BROKEN, source.mark(), source.mark(), source.folder), reader.problems)


def _syntax_problem(error: yaml.MarkedYAMLError, source: Source) -> Problem:
    what = f"this is not YAML: {error.problem or error.context}"
    if error.problem and error.context and error.context_mark:
        what += f", {error.context} from line {source.line + error.context_mark.line}"
    fix = "write a space after the colon, as in {key: value}" if "unexpected ':'" in what else ""
    place = error.problem_mark or error.context_mark
    return Problem(what, fix=fix, mark=source.mark(place.line, place.column) if place else source.mark())


class _Stop(Exception):
    """A mistake after which reading ends."""

    def __init__(self, what: str, mark: Mark, fix: str = "", subject: str = "") -> None:
        self.what, self.problem = what, Problem(subject + what, fix=fix, mark=mark)


@dataclass
class _Alias:
    """An alias; `value` is the composed node that it names, None where there is none."""

    event: Any
    value: Any


class _Composer(Composer, BaseResolver):
    """yaml's composer on libyaml's events. A node keeps its event, an alias stays an alias, and depth is bounded."""

    def __init__(self, source: Source) -> None:
        Composer.__init__(self)
        BaseResolver.__init__(self)
        events = _LOADER(source.text)
        self.check_event, self.get_event, self.peek_event = events.check_event, events.get_event, events.peek_event
        self.source, self.depth = source, 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose the next node."""
        event = self.peek_event()
        if self.depth > MAX_DEPTH:
            raise _Stop(f"more than {MAX_DEPTH} levels deep", self.source.span(event.start_mark, event.end_mark))
        if isinstance(event, yaml.AliasEvent):
            self.get_event()
            return _Alias(event, self.anchors.get(event.anchor))
        self.anchors.pop(event.anchor, None)  # YAML allows an anchor's name to be used again
        self.depth += 1
        node: Any = super().compose_node(parent, index)
        self.depth -= 1
        node.event = event
        return node


class _Reader:
    """Makes a tree of composed nodes; what cannot be in a recipe becomes a problem and a BROKEN node."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.problems: list[Problem] = []
        self.count = 0
        self.open: list[Any] = []  # composed nodes around the current one

    def document(self) -> Node:
        if len(self.source.text) > MAX_CHARACTERS:
            raise _Stop(f"the text has more than {MAX_CHARACTERS:,} characters", self.source.mark())
        composer = _Composer(self.source)
        if not composer.check_node():
            return Node(None, self.source.mark(), self.source.mark(), self.source.folder)
        composed = composer.get_node()
        if composer.check_node():
            mark = self.mark(composer.peek_event())
            raise _Stop("a second document begins here", mark, "keep one document in a file")
        root = self.node(composed)
        root.key = root.mark = self.source.mark()
        return root

    def node(self, composed: Any, key: Mark | None = None) -> Node:
        mark = self.mark(composed.event)
        self.count += 1
        if self.count > MAX_NODES:
            raise _Stop(f"more than {MAX_NODES:,} values", mark)
        if len(self.open) > MAX_DEPTH:
            raise _Stop(f"more than {MAX_DEPTH} levels deep", mark)
        if isinstance(composed, _Alias):
            value = self.alias(composed, mark)
        elif composed.event.tag is not None:
            tag = (mark.text[mark.column - 1 :].split() or ["!"])[0]
            why, fix = "a recipe is text: a tag could call code", "write the plain value"
            value = self.refuse(f"the tag `{tag}` is not read", mark, why, fix)
        else:
            value = self.content(composed, mark)
        return Node(value, key or mark, mark, self.source.folder)

    def content(self, composed: Any, mark: Mark) -> Any:
        if isinstance(composed, yaml.ScalarNode):
            return self.scalar(composed, mark)
        self.open.append(composed)
        is_map = isinstance(composed, yaml.MappingNode)
        value = dict(self.items(composed)) if is_map else [self.node(inner) for inner in composed.value]
        self.open.pop()
        return value

    def items(self, composed: Any) -> Iterator[tuple[str, Node]]:
        first: dict[str, Mark] = {}
        for named, inner in composed.value:
            mark, key = self.mark(named.event), named.value
            properties = named.event.anchor or named.event.tag is not None
            if properties or not isinstance(named, yaml.ScalarNode):
                self.refuse("a key must be plain text", mark, fix="write a word, without tag, anchor or brackets")
            elif key == "<<":
                self.refuse("`<<` is not read", mark, fix="use `extends`, or write the keys out")
            elif key in first:
                what = f"`{key}` occurs twice; the first is in line {first[key].line}"
                self.refuse(what, mark, fix="keep one of them")
            else:
                first[key] = mark
                yield key, self.node(inner, mark)

    def scalar(self, composed: Any, mark: Mark) -> Any:
        text = composed.value
        if composed.style:  # in quotes, or a block of text
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _INTEGER.fullmatch(text):
            return self.integer(text, mark)
        return float(text) if _FLOAT.fullmatch(text) else text

    def integer(self, text: str, mark: Mark) -> Any:
        value = int(text, 0 if text[:2] in ("0o", "0x") else 10) if len(text) <= 24 else MAX_INTEGER + 1
        if abs(value) <= MAX_INTEGER:
            return value
        what, why = f"an integer of {len(text.lstrip('+-'))} digits is too large", "whole numbers have 64 bits here"
        return self.refuse(what, mark, why, f"write at most {MAX_INTEGER}; a name made of digits is written in quotes")

    def alias(self, composed: _Alias, mark: Mark) -> Any:
        """Return a copy of the value that an alias names."""
        name = composed.event.anchor
        if composed.value is None:
            return self.refuse(f"there is no anchor `&{name}` above", mark)
        if any(composed.value is node for node in self.open):
            return self.refuse(f"the alias `*{name}` is inside of what it names", mark)
        try:
            return self.node(composed.value).value
        except _Stop as stop:
            raise _Stop(stop.what, mark, subject=f"the alias `*{name}` makes ") from None

    def refuse(self, what: str, mark: Mark, why: str = "", fix: str = "") -> Any:
        self.problems.append(Problem(what, why, fix, mark=mark))
        return BROKEN

    def mark(self, event: Any) -> Mark:
        return self.source.span(event.start_mark, event.end_mark)
