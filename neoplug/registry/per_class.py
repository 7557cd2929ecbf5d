"""A cache of what is derived from a plugin class, whose hooks and options never change."""

from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

R = TypeVar("R")


def per_class(function: Callable[[type], R]) -> Callable[[type], R]:
    """Return `function`, a function of a class alone, which keeps its latest results; an exception is not kept."""
    return lru_cache(maxsize=256)(function)
