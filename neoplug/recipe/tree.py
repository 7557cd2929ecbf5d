"""A recipe as a tree of nodes (values with their positions in the text) and as plain values; merging of trees."""

from dataclasses import dataclass, field, replace
from functools import reduce
from operator import getitem
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
    """A value and its place in the text.

    value   a map or a list of nodes, a plain scalar, or BROKEN
    key     the place of its key (in a list or at the root: of the value)
    mark    the place of the value
    folder  the folder from which a relative path in it starts
    """

    value: Any
    key: Mark
    mark: Mark
    folder: Path


@dataclass
class Tree:
    """A tree of nodes, and its plain values with all maps sorted by key: the order in a recipe has no effect.

    problems    mistakes found while it was read
    removed     path -> null node, of each null that removes the key below it, if that exists
    incomplete  the recipe that this one extends could not be read
    values      the plain values; BROKEN nodes are left out of maps and are None in lists
    places      path -> node, of all in `values` and `broken`; () is the root
    broken      the paths of BROKEN nodes
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
        """Return the plain value of a node; register it and those inside it in `places` and `broken`."""
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
        try:
            return reduce(getitem, path, self.values)
        except (KeyError, IndexError, TypeError):
            return None

    def nearest(self, path: Key) -> Node:
        """Return the node at `path` or the null that removed it, else those of the nearest ancestor."""
        ancestors = (path[:length] for length in range(len(path), -1, -1))
        return next(node for each in ancestors if (node := self.places.get(each) or self.removed.get(each)))

    def mark(self, path: Key, *, value: bool = False) -> Mark:
        """Return the mark of the key at `path`, or of its value; where absent, of the nearest ancestor's key."""
        node = self.nearest(path)
        return node.mark if value and (path in self.places or path in self.removed) else node.key

    def key_mark(self, path: Key) -> Mark | None:
        """Return the mark of the key at `path`; None where it is not in the text, as a default."""
        return self.places[path].key if path in self.places else None

    def is_broken(self, path: Key) -> bool:
        """Return whether a node at, above or below `path` is BROKEN."""
        return any(path[: len(bad)] == bad or bad[: len(path)] == path for bad in self.broken)


def merge(lower: Node, upper: Node, removed: dict[Key, Node], *, path: Key = (), override: Key = ()) -> Node:
    """Return the map `lower` updated by the map `upper`: maps merge key by key, a null removes a key.

    A map of plugins in `upper` replaces that of `lower`. For an override only the value at its path replaces.

    removed   output: gets path -> null node of each null
    path      the path of both maps
    override  the path of the override that `upper` is, if it is one
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
            merged = merge(below, node, removed, path=here, override=override)
            if merged.value or key in value or not override:
                value[key] = merged
        else:
            value[key] = node
    return replace(lower, value=value)


def is_option(path: Key) -> bool:
    """Return whether `path` is inside a plugin's options, where an override may set null."""
    return any(len(path) > len(plugin_map) + 1 and path[: len(plugin_map)] == plugin_map for plugin_map in PLUGIN_MAPS)
