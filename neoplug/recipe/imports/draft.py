"""A recipe in the making: each value with the key of the other project that it comes from; rendered with comments."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from neoplug.recipe.python_values import to_yaml

_MISSING = object()


@dataclass
class Draft:
    """The recipe that a configuration becomes.

    project   the project, in comments
    given     the keys of the configuration that are not converted yet, with their values
    defaults  the project's own defaults of keys that differ from neoplug's
    lines     path in the recipe -> value and comment
    open      sentences on what has to be decided by hand
    """

    project: str
    given: dict[str, Any]
    defaults: Mapping[str, Any]
    lines: dict[tuple[str, ...], tuple[Any, str]] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)

    def take(self, key: str) -> tuple[Any, str]:
        """Return the value of a key, which counts as converted, and the comment on it; None where it has no value."""
        value = self.given.pop(key, _MISSING)
        if value is _MISSING or value is None:
            return self.defaults.get(key), f"default of {self.project}: {key}"
        return value, key

    def set(self, path: str, value: Any, comment: str = "") -> None:
        """Set a value of the recipe; `path` is dotted."""
        self.lines[tuple(path.split("."))] = (value, comment)

    def move(self, key: str, path: str) -> Any:
        """Set a value of the recipe to that of a key, if it has one; return it."""
        value, comment = self.take(key)
        if value is not None:
            self.set(path, value, comment)
        return value

    def text(self, ignored: frozenset[str]) -> str:
        """Return the recipe as YAML with comments; `ignored` are keys that change nothing of what is trained."""
        tree: dict[str, Any] = {}
        for path, line in self.lines.items():
            section = tree
            for name in path[:-1]:
                section = section.setdefault(name, {})
            section[path[-1]] = line
        return "".join(f"{line}\n" for line in (*self._head(ignored), *_rendered(tree, 0)))

    def without_counterpart(self, ignored: frozenset[str]) -> list[str]:
        """Return the keys that are not in the recipe, with their values, and without those in `ignored`."""
        return [f"{key}: {_scalar(value)}" for key, value in self.given.items() if key not in ignored]

    def _head(self, ignored: frozenset[str]) -> Iterator[str]:
        yield f"# Imported from {self.project}. Comments name the key that a value comes from."
        yield from (f"# To decide: {text}" for text in self.open)
        yield from (f"# Without a counterpart: {text}" for text in self.without_counterpart(ignored))
        if unneeded := [key for key in self.given if key in ignored]:
            yield f"# Not needed: {', '.join(unneeded)}"


def _rendered(tree: Mapping[str, Any], depth: int) -> Iterator[str]:
    for name, entry in tree.items():
        indent = "  " * depth
        if isinstance(entry, dict):
            yield f"{indent}{name}:"
            yield from _rendered(entry, depth + 1)
        else:
            value, comment = entry
            yield f"{indent}{name}: {_scalar(value)}{f' # {comment}' if comment else ''}"


def _scalar(value: Any) -> str:
    """Return a value on one line of YAML."""
    if isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else ((None, one) for one in value)
        inner = ", ".join(f"{key}: {_scalar(one)}" if key is not None else _scalar(one) for key, one in parts)
        return f"{{{inner}}}" if isinstance(value, dict) else f"[{inner}]"
    return to_yaml({"key": value}).removeprefix("key: ").strip()
