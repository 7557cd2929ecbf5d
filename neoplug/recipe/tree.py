"""A recipe as a tree of nodes (values with their positions in the text) and as plain values; merging of trees."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from operator import getitem
from pathlib import Path
from typing import Any

from neoplug.errors import Mark, Problem
from neoplug.errors import Path as Key
from neoplug.recipe.schema import PLUGIN_MAPS, is_plugin_map, plugin_map_at

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

    def child(self, key: str | int) -> "Node | None":
        """Return the node of a key of a map, or at a place of a list; None where there is none."""
        if isinstance(self.value, dict):
            return self.value.get(key)
        is_place = isinstance(self.value, list) and isinstance(key, int) and key < len(self.value)
        return self.value[key] if is_place else None

    def items(self) -> Iterator[tuple[str | int, "Node"]]:
        """Yield the keys of a map, or the numbers of a list, with their nodes; nothing for a scalar."""
        if isinstance(self.value, dict):
            yield from self.value.items()
        elif isinstance(self.value, list):
            yield from enumerate(self.value)


@dataclass
class Tree:
    """A tree of nodes, and its plain values with all maps sorted by key: the order in a recipe has no effect.

    problems    mistakes found while it was read
    removed     path -> null node, of each null that removes the key below it, if that exists
    incomplete  the recipe that this one extends could not be read
    """

    root: Node
    problems: list[Problem] = field(default_factory=list)
    removed: dict[Key, Node] = field(default_factory=dict)
    incomplete: bool = False

    @cached_property
    def values(self) -> Any:
        """The plain values; BROKEN nodes are left out of maps and are None in lists."""
        return plain(self.root, sort=True)

    @cached_property
    def broken(self) -> set[Key]:
        """The paths of BROKEN nodes."""
        return set(_broken(self.root, ()))

    @cached_property
    def _above_broken(self) -> set[Key]:
        return {path[:length] for path in self.broken for length in range(len(path))}

    def node(self, path: Key) -> Node | None:
        """Return the node at `path`; None where there is none. The path () is that of the root."""
        node: Node | None = self.root
        for key in path:
            node = node.child(key) if node else None
        return node

    def get(self, path: Key) -> Any:
        """Return the value at `path`; None where there is none."""
        try:
            return reduce(getitem, path, self.values)
        except (KeyError, IndexError, TypeError):
            return None

    @property
    def plugin_maps(self) -> dict[Key, str]:
        """The path of each map of plugins -> its section; of sources only those that the recipe has as a map."""
        maps = (path for path in self.sources if isinstance(self.get(path), dict))
        return PLUGIN_MAPS | {path: ".".join(map(str, path)) for path in maps}

    @property
    def sources(self) -> list[Key]:
        """The paths of all sources of rows that the recipe may have."""
        named = self.get(("data", "sources"))
        several = [("data", "sources", name, "source") for name in named] if isinstance(named, dict) else []
        return [("data", "source"), ("data", "eval_source"), *several]

    def nearest(self, path: Key) -> Node:
        """Return the node at `path` or the null that removed it, else those of the nearest ancestor."""
        ancestors = (path[:length] for length in range(len(path), -1, -1))
        return next(node for each in ancestors if (node := self.node(each) or self.removed.get(each)))

    def mark(self, path: Key, *, value: bool = False) -> Mark:
        """Return the mark of the key at `path`, or of its value; where absent, of the nearest ancestor's key."""
        if node := self.node(path) or self.removed.get(path):
            return node.mark if value else node.key
        return self.nearest(path).key

    def key_mark(self, path: Key) -> Mark | None:
        """Return the mark of the key at `path`; None where it is not in the text, as a default."""
        node = self.node(path)
        return node.key if node else None

    def is_broken(self, path: Key) -> bool:
        """Return whether a node at, above or below `path` is BROKEN."""
        return path in self._above_broken or any(path[:length] in self.broken for length in range(len(path) + 1))


def plain(node: Node, *, sort: bool) -> Any:
    """Return the plain value of a node; `sort`: with all maps sorted by key, else in the order of the text."""
    items = sorted(node.items()) if sort else node.items()
    inner = {key: plain(child, sort=sort) for key, child in items}
    if isinstance(node.value, dict):
        return {key: value for key, value in inner.items() if value is not BROKEN}
    if isinstance(node.value, list):
        return [None if value is BROKEN else value for value in inner.values()]
    return node.value


def _broken(node: Node, path: Key) -> Iterator[Key]:
    if node.value is BROKEN:
        yield path
    for key, child in node.items():
        yield from _broken(child, (*path, key))


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
        elif isinstance(node.value, dict) and (len(here) < len(override) if override else not is_plugin_map(here)):
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
    plugin_map = plugin_map_at(path)
    return plugin_map is not None and len(path) > len(plugin_map) + 1


def changed(tree: Tree, changes: Iterable[tuple[Key, Node]]) -> Tree:
    """Return `tree`, which is a map, with each node merged in at its path, as by a recipe that extends it."""
    root, removed = tree.root, dict(tree.removed)
    for path, node in changes:
        root = _merge_at(root, path, 0, node, removed)
    return Tree(root, tree.problems, removed, tree.incomplete)


def _merge_at(lower: Node, path: Key, depth: int, node: Node, removed: dict[Key, Node]) -> Node:
    """Return the map `lower`, which is at the first `depth` keys of `path`, with `node` merged in at `path`."""
    key = path[depth]
    if depth == len(path) - 1:
        return merge(lower, replace(node, value={key: node}), removed, path=path[:depth])
    inner = lower.value.get(key)
    inner = inner if inner and isinstance(inner.value, dict) else replace(node, value={})
    return replace(lower, value=lower.value | {key: _merge_at(inner, path, depth + 1, node, removed)})
