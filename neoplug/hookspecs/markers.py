"""The markers of hooks and of their implementations, and the types in the specifications."""

from typing import Literal

import pluggy

hookspec = pluggy.HookspecMarker("neoplug")
hookimpl = pluggy.HookimplMarker("neoplug")

Role = Literal["teacher", "student"]
# What a loss reads of the teacher, from least to most; a cache that serves one of them serves those before it.
Reads = Literal["nothing", "linear", "buckets", "full"]
