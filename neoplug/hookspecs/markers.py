"""The markers of hooks and of their implementations, and the types in the specifications."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pluggy

hookspec = pluggy.HookspecMarker("neoplug")
hookimpl = pluggy.HookimplMarker("neoplug")

# The version of neoplug that last added to what plugins can use: a hook, an argument, or a name to import.
API_VERSION = "0.1"

Role = Literal["teacher", "student"]
# What a loss reads of the teacher, from least to most; a cache that serves one of them serves those before it.
Reads = Literal["nothing", "linear", "buckets", "full"]


@dataclass(frozen=True)
class Source:
    """A source of rows, which `open_source` returns.

    rows      rows() yields all rows, each a map from column to value; each call starts again, with the same rows in the
              same order
    identity  identity() returns all that the rows depend on, as JSON holds it: the hash of a file, a query, a version
    """

    rows: Callable[[], Iterable[Mapping[str, Any]]]
    identity: Callable[[], Any]
