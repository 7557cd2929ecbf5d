"""A recipe as a tree of values, each with the place where it is written; and the same as plain values."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from neoplug.errors import Mark, Problem
from neoplug.errors import Path as Key
from neoplug.recipe.schema import PLUGIN_MAPS

MAX_DEPTH = 24
MAX_INTEGER = 2**63 - 1
BROKEN = object()  # the value of a node that has a problem already


@dataclass
class Node:
    """A value and where it is written.

    value   a map or a list of nodes, a plain scalar, or BROKEN
    key     the place of its key (in a list or at the root: of the value)
    mark    the place of the value
    folder  where a relative path in it starts
    """

    value: Any
    key: Mark
    mark: Mark
    folder: Path


@dataclass
class Tree:
    """A tree of nodes, and its plain values with all maps sorted by key: the order in a recipe means nothing.

    removed     paths that a null removed (or would have, had they been there), and the null
    incomplete  a recipe that these values extend could not be read
    values      the plain values; without what is broken, which in a list is None
    places      the node of every path in `values` and `broken`; () is the root
    broken      paths of what has a problem already
    """

    root: Node
    problems: list[Problem] = field(default_factory=list)
    removed: dict[Key, Node] = field(default_factory=dict)
    incomplete: bool = False
    values: Any = field(init=False)
    places: dict[Key, Node] = field(init=False, default_factory=dict)
    broken: set[Key] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.values = self._plain(self.root, ())

    def _plain(self, node: Node, path: Key) -> Any:
        self.places[path] = node
        if isinstance(node.value, dict):
            values = {key: self._plain(inner, (*path, key)) for key, inner in sorted(node.value.items())}
            return {key: value for key, value in values.items() if value is not BROKEN}
        if isinstance(node.value, list):
            items = [self._plain(inner, (*path, number)) for number, inner in enumerate(node.value)]
            return [None if item is BROKEN else item for item in items]
        if node.value is BROKEN:
            self.broken.add(path)
        return node.value

    def get(self, path: Key) -> Any:
        """Return the value at `path`; None where there is none."""
        here: Any = self.values
        for key in path:
            try:
                here = here[key]
            except (KeyError, IndexError, TypeError):
                return None
        return here

    def nearest(self, path: Key) -> Node:
        """Return the node at `path`, or the null that removed it; else that of the nearest ancestor."""
        ancestors = (path[:length] for length in range(len(path), -1, -1))
        return next(node for each in ancestors if (node := self.places.get(each) or self.removed.get(each)))

    def mark(self, path: Key, *, value: bool = False) -> Mark:
        """Return the place of the key at `path`, or of its value; where nothing is there, of the nearest ancestor."""
        node = self.nearest(path)
        return node.mark if value and (path in self.places or path in self.removed) else node.key

    def is_broken(self, path: Key) -> bool:
        """Return whether something at, above or below `path` has a problem already."""
        return any(path[: len(bad)] == bad or bad[: len(path)] == path for bad in self.broken)


def lay(lower: Node, upper: Node, removed: dict[Key, Node], *, path: Key = (), override: Key = ()) -> Node:
    """Return the map `lower` with the map `upper` laid over it: maps merge key by key, a null removes a key.

    A map of plugins replaces that below, unless `upper` is the one value at the path `override`, which replaces.

    removed   takes the paths that a null removed, and the null
    path      where both are
    """
    value = dict(lower.value)
    for key, node in upper.value.items():
        here = (*path, key)
        if node.value is None and not (override and is_option(here)):
            value.pop(key, None)
            removed[here] = node
        elif isinstance(node.value, dict) and (len(here) < len(override) if override else here not in PLUGIN_MAPS):
            below = value.get(key)
            below = below if below and isinstance(below.value, dict) else replace(node, value={})
            merged = lay(below, node, removed, path=here, override=override)
            if merged.value or key in value or not override:
                value[key] = merged
        else:
            value[key] = node
    return replace(lower, value=value)


def is_option(path: Key) -> bool:
    """Return whether `path` is in a plugin's options, where null is a value like others."""
    return any(len(path) > len(plugin_map) + 1 and path[: len(plugin_map)] == plugin_map for plugin_map in PLUGIN_MAPS)
