"""One tree of values laid over another: what a recipe extends, the recipe, then changes; each value keeps its place."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from neoplug.errors import Mark, Problem
from neoplug.errors import Path as Key
from neoplug.recipe.marks import BROKEN, MAX_DEPTH, MAX_INTEGER, Place, Tree, inside


def from_values(values: Mapping[str, Any], file: str, folder: Path) -> Tree:
    """Make a tree of plain Python values (maps, lists, text, numbers, booleans, None, paths); each is its own line."""
    tree = Tree()
    line = Mark(file, 1, 1, 1, ", ".join(map(str, values)))
    tree.places[()] = Place(line, line, folder)
    tree.values = {key: value for key, value in _copied(tree, values, (), file, folder) if value is not BROKEN}
    return tree


def from_word(values: Mapping[str, Any], file: str, word: str, folder: Path) -> Tree:
    """Make a tree of values that one word of a command line stands for: each has its place there."""
    tree = from_values(values, file, folder)
    mark = Mark(file, 1, 1, len(word), word)
    tree.places = dict.fromkeys(tree.places, Place(mark, mark, folder))
    return tree


def _copied(tree: Tree, values: Mapping[Any, Any], path: Key, file: str, folder: Path) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        here = (*path, str(key))
        shown = "{...}" if isinstance(value, Mapping) else _shown(value)
        text = f"{'.'.join(map(str, here))}={shown}".replace("\n", " ")
        start = len(text) - len(shown)
        tree.places[here] = Place(
            Mark(file, 1, start - len(str(key)), len(str(key)), text),
            Mark(file, 1, start + 1, len(shown), text),
            folder,
        )
        yield str(key), _plain(tree, value, here, file, folder)


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return f"{type(value).__name__}(...)"


def _plain(tree: Tree, value: Any, path: Key, file: str, folder: Path) -> Any:
    if len(path) > MAX_DEPTH:
        return _refused(tree, f"more than {MAX_DEPTH} levels deep", path)
    if isinstance(value, Mapping):
        return {key: inner for key, inner in _copied(tree, value, path, file, folder) if inner is not BROKEN}
    if isinstance(value, list | tuple):
        items = [_plain(tree, inner, (*path, number), file, folder) for number, inner in enumerate(value)]
        return [None if inner is BROKEN else inner for inner in items]
    if isinstance(value, Path):
        return str(value)
    given, value = value, _scalar(value)
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        return _refused(
            tree, "the integer is too large", path, "whole numbers have 64 bits here", f"write at most {MAX_INTEGER}"
        )
    if type(value) is str and not _is_text(value):
        return _refused(tree, "the text holds half a character", path)
    if value is None or type(value) in (bool, int, float, str):
        return value
    return _refused(
        tree, f"a {type(given).__name__} cannot stand in a recipe", path, "a recipe holds what YAML can say"
    )


def _scalar(value: Any) -> Any:
    """Return the plain scalar that a numpy scalar, or another kind of number, is exactly; else `value` itself."""
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


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeError:
        return False
    return True


def _refused(tree: Tree, what: str, path: Key, why: str = "", fix: str = "") -> Any:
    tree.problems.append(Problem(what, why, fix, mark=tree.mark(path)))
    tree.broken.add(path)
    return BROKEN


def assign(tree: Tree, path: Key, value: Any, other: Tree) -> None:
    """Put `value`, whose places are those of `other` at the same path, in place of whatever `tree` has at `path`."""
    here: Any = tree.values
    for length, key in enumerate(path[:-1], 1):
        if not isinstance(here.get(key), dict):
            here[key] = {}
            tree.places[path[:length]] = other.places[path[:length]]
        here = here[key]
    here[path[-1]] = value
    _forget(tree, path)
    tree.places |= {known: place for known, place in other.places.items() if known[: len(path)] == path}


def remove(tree: Tree, path: Key, place: Place) -> bool:
    """Take away what stands at `path`, on the word of `place`; say whether anything stood there."""
    tree.removed[path] = place
    parent = tree.get(path[:-1])
    _forget(tree, path)
    return isinstance(parent, dict) and parent.pop(path[-1], BROKEN) is not BROKEN


def merge(parent: Tree, child: Tree, whole: Callable[[Key], bool]) -> Tree:
    """Lay `child` over `parent`: maps merge key by key, a null removes a key, and a map that is `whole` replaces."""
    merged = deepcopy(parent)
    merged.problems += child.problems
    _lay(merged, child, (), whole)
    merged.broken |= child.broken
    return merged


def _lay(merged: Tree, child: Tree, path: Key, whole: Callable[[Key], bool]) -> None:
    for key, value in child.get(path).items():
        here = (*path, key)
        if value is None:
            remove(merged, here, child.places[here])
        elif isinstance(value, dict) and not whole(here):
            if not isinstance(merged.get(here), dict):
                assign(merged, here, {}, child)
                for known in [known for known in merged.places if inside(known, here)]:
                    del merged.places[known]
            _lay(merged, child, here, whole)
        else:
            assign(merged, here, deepcopy(value), child)


def _forget(tree: Tree, path: Key) -> None:
    for known in [known for known in tree.places if known[: len(path)] == path]:
        del tree.places[known]
    tree.broken = {bad for bad in tree.broken if bad[: len(path)] != path}


def ordered(values: Any) -> Any:
    """Return `values` with all maps sorted by key: how a recipe orders them means nothing."""
    if isinstance(values, dict):
        return {key: ordered(values[key]) for key in sorted(values)}
    return [ordered(value) for value in values] if isinstance(values, list) else values


def joined(path: Sequence[str | int]) -> str:
    """Write a path as an override would: parts with a dot or other unusual letters are quoted."""
    return ".".join(str(key) if re.fullmatch(r"[\w@-]+", str(key)) else f'"{key}"' for key in path)
