"""Trees of values laid over each other: what a recipe extends, the recipe, then changes; a value keeps its place."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from neoplug.errors import Mark, Problem
from neoplug.errors import Path as Key
from neoplug.recipe.schema import PLUGIN_MAPS
from neoplug.recipe.tree import BROKEN, MAX_DEPTH, MAX_INTEGER, Node, Tree


@dataclass
class Layers:
    """What has been laid so far; `tree()` returns the whole. The fields are those of Tree."""

    root: Node
    problems: list[Problem] = field(default_factory=list)
    removed: dict[Key, Node] = field(default_factory=dict)
    incomplete: bool = False

    def tree(self) -> Tree:
        """Return the tree of all layers."""
        return Tree(self.root, self.problems, self.removed, self.incomplete)

    def lay(self, upper: Tree) -> None:
        """Lay `upper` over what is there: maps merge key by key, a null removes a key, a map of plugins replaces."""
        self.problems += upper.problems
        self._lay(upper.root, ())

    def _lay(self, upper: Node, path: Key) -> None:
        for key, node in upper.value.items():
            here = (*path, key)
            if node.value is None:
                self.remove(here, node)
            elif isinstance(node.value, dict) and here not in PLUGIN_MAPS:
                if not isinstance(self._value(here), dict):
                    self.put(here, replace(node, value={}))
                self._lay(node, here)
            else:
                self.put(here, node)

    def put(self, path: Key, node: Node) -> None:
        """Put `node` at `path`, in maps that have its place where there are none."""
        here = self.root
        for key in path[:-1]:
            if not isinstance(self._value((key,), here), dict):
                here.value[key] = replace(node, value={})
            here = here.value[key]
        here.value[path[-1]] = node

    def remove(self, path: Key, null: Node) -> bool:
        """Remove what is at `path`; return whether anything was."""
        self.removed[path] = null
        parent = self._value(path[:-1])
        return isinstance(parent, dict) and parent.pop(path[-1], None) is not None

    def _value(self, path: Key, start: Node | None = None) -> Any:
        here = start or self.root
        for key in path:
            if not isinstance(here.value, dict) or key not in here.value:
                return None
            here = here.value[key]
        return here.value


def from_values(values: Mapping[str, Any], file: str, folder: Path) -> Tree:
    """Make a tree of plain Python values (maps, lists, text, numbers, booleans, None, paths); each is its own line."""
    return _Values(file, folder).tree(values)


def from_word(values: Mapping[str, Any], file: str, word: str, folder: Path) -> Tree:
    """Make a tree of values that one word of a command line names: the word is the place of each."""
    return _Values(file, folder, word).tree(values)


@dataclass
class _Values:
    """Makes nodes of Python values; what cannot be in a recipe becomes a problem and BROKEN."""

    file: str
    folder: Path
    word: str | None = None
    problems: list[Problem] = field(default_factory=list)

    def tree(self, values: Mapping[str, Any]) -> Tree:
        line = Mark(self.file, 1, 1, 1, ", ".join(map(str, values)))
        return Tree(Node(self.map(values, ()), line, line, self.folder), self.problems)

    def map(self, values: Mapping[Any, Any], path: Key) -> dict[str, Node]:
        return {str(key): self.entry(value, (*path, str(key))) for key, value in values.items()}

    def entry(self, value: Any, path: Key) -> Node:
        key, mark = self.marks(value, path)
        return Node(self.content(value, path, key), key, mark, self.folder)

    def marks(self, value: Any, path: Key) -> tuple[Mark, Mark]:
        """Return the places of a key and its value: in the word, or in the line that an override would be."""
        if self.word is not None:
            mark = Mark(self.file, 1, 1, len(self.word), self.word)
            return mark, mark
        try:
            shown = "{...}" if isinstance(value, Mapping) else repr(value)
        except ValueError:  # Python writes no integer of more than 4,300 digits
            shown = f"{type(value).__name__}(...)"
        key = str(path[-1])
        text = f"{'.'.join(map(str, path))}={shown}".replace("\n", " ")
        start = len(text) - len(shown)
        return Mark(self.file, 1, start - len(key), len(key), text), Mark(self.file, 1, start + 1, len(shown), text)

    def content(self, value: Any, path: Key, mark: Mark) -> Any:
        if len(path) > MAX_DEPTH:
            return self.refuse(f"more than {MAX_DEPTH} levels deep", mark)
        if isinstance(value, Mapping):
            return self.map(value, path)
        if isinstance(value, list | tuple):
            items = [self.content(item, (*path, number), mark) for number, item in enumerate(value)]
            return [Node(item, mark, mark, self.folder) for item in items]
        if isinstance(value, Path):
            return str(value)
        plain = _plain_scalar(value)
        if isinstance(plain, int) and abs(plain) > MAX_INTEGER:
            why = "whole numbers have 64 bits here"
            return self.refuse("the integer is too large", mark, why, f"write at most {MAX_INTEGER}")
        if type(plain) is str and not _is_unicode(plain):
            return self.refuse("the text holds half a character", mark)
        if plain is None or type(plain) in (bool, int, float, str):
            return plain
        what = f"a {type(value).__name__} cannot be in a recipe"
        return self.refuse(what, mark, "a recipe holds what YAML can express")

    def refuse(self, what: str, mark: Mark, why: str = "", fix: str = "") -> Any:
        self.problems.append(Problem(what, why, fix, mark=mark))
        return BROKEN


def _plain_scalar(value: Any) -> Any:
    """Return the plain scalar that a numpy scalar, or another kind of number, equals exactly; else `value` itself."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    if isinstance(value, Integral):
        return int(value)
    try:
        return float(value) if isinstance(value, Real) and float(value) == value else value
    except OverflowError:
        return value


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeError:
        return False
    return True


def joined(path: Sequence[str | int]) -> str:
    """Write a path as an override does: parts with a dot or other unusual letters are quoted."""
    return ".".join(str(key) if re.fullmatch(r"[\w@-]+", str(key)) else f'"{key}"' for key in path)
