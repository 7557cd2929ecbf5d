"""A YAML reader that keeps the position of every value.

It reads the parser's events and constructs no Python objects: no tag runs code, aliases and duplicate keys are checked.
Scalars follow YAML 1.2's core schema: `1e-4` is a number, only `true` and `false` are booleans, `on` and `no` are text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from neoplug.errors import Mark, Problem, RecipeError
from neoplug.errors.text import has_credential
from neoplug.recipe.limits import MAX_CHARACTERS, MAX_INTEGER, Size
from neoplug.recipe.tree import BROKEN, Node, Tree

CREDENTIAL = Problem(
    "a recipe cannot hold a password or an access token",
    "the run's directory, its log and its model card would show it",
    "log in with `hf auth login`, or set HF_TOKEN; a download may be a local file",
)
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
class YamlText:
    """A YAML text and where it comes from.

    file    its name in messages
    folder  the folder from which relative paths in it start
    lead    the text before it on its first line, as `key=` of an override
    line    the number of its first line
    word    the command line argument from which the text was generated, if any: the mark of all its values
    """

    text: str
    file: str
    folder: Path
    lead: str = ""
    line: int = 1
    word: str = ""

    @cached_property
    def lines(self) -> list[str]:
        """The lines as YAML counts them, `lead` included."""
        return _BREAKS.split(self.lead + self.text)

    def mark(self, line: int = 0, column: int = 0, length: int = 1) -> Mark:
        """Return the mark at a 0-based line and column of `text`."""
        if self.word:
            return Mark(self.file, 1, 1, len(self.word), self.word)
        line = min(line, len(self.lines) - 1)
        column += len(self.lead) if line == 0 else 0
        whole = self.lines[line]
        return Mark(self.file, self.line + line, column + 1, max(1, min(length, len(whole) - column)), whole)

    def mark_at(self, position: int) -> Mark:
        """Return the mark of the character at a position in `text`."""
        before = _BREAKS.split(self.text[:position])
        return self.mark(len(before) - 1, len(before[-1]))

    def span(self, start: Any, end: Any) -> Mark:
        """Return the mark from `start` to `end`, which are yaml's marks; it ends with its first line."""
        length = end.column - start.column if end.line == start.line else MAX_CHARACTERS
        return self.mark(start.line, start.column, length)


def read(source: YamlText, size: Size | None = None, depth: int = 0) -> Tree:
    """Return the tree of a text; mistakes are its `problems`, and its root is BROKEN where reading had to end.

    size   what was read of the same recipe before; it is added to
    depth  of the text's root in the recipe
    """
    reader = _Reader(source, size or Size())
    try:
        root = reader.document(depth)
    except RecipeError as error:
        reader.problems += error.problems
    except UnicodeEncodeError as error:
        mark = source.mark_at(error.start)
        reader.problems.append(Problem("this is not UTF-8 text", fix="save the file as UTF-8", mark=mark))
    except yaml.reader.ReaderError as error:
        mark = source.mark_at(error.position)
        reader.problems.append(Problem(f"a character cannot be read: {error.reason}", mark=mark))
    except yaml.MarkedYAMLError as error:
        reader.problems.append(_syntax_problem(error, source))
    else:
        return Tree(root, reader.problems)
    return Tree(Node(BROKEN, source.mark(), source.mark(), source.folder), reader.problems)


def _syntax_problem(error: yaml.MarkedYAMLError, source: YamlText) -> Problem:
    what = f"this is not YAML: {error.problem or error.context}"
    if error.problem and error.context and error.context_mark:
        what += f", {error.context} from line {source.line + error.context_mark.line}"
    fix = "write a space after the colon, as in {key: value}" if "unexpected ':'" in what else ""
    place = error.problem_mark or error.context_mark
    return Problem(what, fix=fix, mark=source.mark(place.line, place.column) if place else source.mark())


class _Reader:
    """Builds a tree from libyaml's events; what a recipe cannot contain becomes a problem and a BROKEN node."""

    def __init__(self, source: YamlText, size: Size) -> None:
        self.source, self.size = source, size
        self.events: Iterator[Any] = yaml.parse(source.text, Loader=_LOADER)
        self.problems: list[Problem] = []
        self.anchors: dict[str | None, Node | None] = {}  # a node is None until it is complete

    def document(self, depth: int) -> Node:
        self.size.add_text(len(self.source.text), self.source.mark())
        next(self.events)  # the start of the stream
        is_empty = isinstance(next(self.events), yaml.StreamEndEvent)
        root = Node(None, self.source.mark(), self.source.mark(), self.source.folder)
        if not is_empty:
            root = replace(root, value=self.node(depth).value)
            next(self.events)  # the end of the document
            event = next(self.events)
            if not isinstance(event, yaml.StreamEndEvent):
                fix = "keep one document in a file"
                raise RecipeError([Problem("a second document begins here", fix=fix, mark=self.mark(event))])
        return root

    def node(self, depth: int, key: Mark | None = None, event: Any = None) -> Node:
        """Read the node that begins with `event`, by default the next event. `key` is the place of its key."""
        event = event or next(self.events)
        mark = self.mark(event)
        self.size.add_node(depth, mark)
        if isinstance(event, yaml.AliasEvent):
            return Node(self.alias(event.anchor, depth, mark), key or mark, mark, self.source.folder)
        self.anchors[event.anchor] = None  # without an anchor, under None: no alias has this name
        node = Node(self.content(event, depth, mark), key or mark, mark, self.source.folder)
        if event.tag is not None:
            tag = (mark.text[mark.column - 1 :].split(maxsplit=1) or ["!"])[0]
            why = "a recipe holds maps, lists, text, numbers, true, false and null; a tag could run code"
            node.value = self.refuse(f"`{tag}` cannot be in a recipe", mark, why, "write the plain value")
        self.anchors[event.anchor] = node
        return node

    def content(self, event: Any, depth: int, mark: Mark) -> Any:
        if isinstance(event, yaml.ScalarEvent):
            return self.scalar(event, mark)
        if isinstance(event, yaml.SequenceStartEvent):
            return [self.node(depth + 1, event=first) for first in self.until(yaml.SequenceEndEvent)]
        return dict(self.items(depth + 1))

    def until(self, end: type) -> Iterator[Any]:
        """Yield the first event of each node up to an event of the type `end`; the caller reads the node's others."""
        while not isinstance(event := next(self.events), end):
            yield event

    def items(self, depth: int) -> Iterator[tuple[str, Node]]:
        """Yield the valid keys of a map with their nodes."""
        marks: dict[str, Mark] = {}
        for event in self.until(yaml.MappingEndEvent):
            mark, key = self.mark(event), getattr(event, "value", "")
            if event.anchor or not isinstance(event, yaml.ScalarEvent) or event.tag is not None:
                self.refuse("a key must be plain text", mark, fix="write a word, without tag, anchor or brackets")
                self.node(depth, event=event)
            elif has_credential(key):
                self.refuse(CREDENTIAL.what, mark, CREDENTIAL.why, CREDENTIAL.fix)
            elif key == "<<":
                self.refuse("`<<` is not read", mark, fix="use `extends`, or write the keys out")
            elif key in marks:
                what = f"`{key}` occurs twice; the first is in line {marks[key].line}"
                self.refuse(what, mark, fix="keep one of them")
            else:
                marks[key] = mark
                yield key, self.node(depth, mark)
                continue
            self.node(depth)  # the refused key's value

    def scalar(self, event: Any, mark: Mark) -> Any:
        text = event.value
        if "\0" in text:
            return self.refuse("a text cannot hold the character `\\0`", mark, "no path, name or message can have it")
        if has_credential(text):
            return self.refuse(CREDENTIAL.what, mark, CREDENTIAL.why, CREDENTIAL.fix)
        if event.style:  # in quotes, or a block of text
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

    def alias(self, name: str | None, depth: int, mark: Mark) -> Any:
        """Return the value that an alias names: the same nodes, which count again towards the limits."""
        if name not in self.anchors:
            return self.refuse(f"there is no anchor `&{name}` above", mark)
        if (node := self.anchors[name]) is None:
            return self.refuse(f"the alias `*{name}` is inside of what it names", mark)
        self.count_again(node, depth, mark, f"the alias `*{name}` makes ")
        return node.value

    def count_again(self, node: Node, depth: int, mark: Mark, subject: str) -> None:
        value = node.value
        self.size.add_node(depth, mark, subject)
        self.size.add_text(sum(map(len, value)) if isinstance(value, dict | str) else 0, mark, subject)
        for _, inner in node.items():
            self.count_again(inner, depth + 1, mark, subject)

    def refuse(self, what: str, mark: Mark, why: str = "", fix: str = "") -> Any:
        """Record a problem; return BROKEN, the value of its node."""
        self.problems.append(Problem(what, why, fix, mark=mark))
        return BROKEN

    def mark(self, event: Any) -> Mark:
        return self.source.span(event.start_mark, event.end_mark)
