"""Flattening of nested maps, such as recipes, results and metrics, to paths and values."""

from collections.abc import Iterator, Mapping
from typing import Any

from neoplug.errors import Path


def leaves(values: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield the path and value of each leaf of nested maps; a list and an empty map are leaves."""
    if isinstance(values, Mapping) and (values or not path):
        for key, value in values.items():
            yield from leaves(value, (*path, key))
    else:
        yield path, values


def numbers(values: Mapping[str, Any], separator: str = ".") -> dict[str, float]:
    """Return the leaves that are numbers (no booleans) by their joined paths, as {"probes.calibration.ece": 0.1}."""
    return {
        separator.join(map(str, path)): value
        for path, value in leaves(values)
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
