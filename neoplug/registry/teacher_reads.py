"""What losses, token weights and probes read of the teacher, and what a kind of cache serves."""

from typing import Any, get_args

from neoplug.hookspecs import Reads
from neoplug.registry.validation import answered

LEVELS: tuple[Reads, ...] = get_args(Reads)  # whoever serves one of them serves those before it
_HOOKS = ("token_loss", "token_gradient", "token_weight", "on_evaluate")


def reads_teacher(plugin: Any) -> Reads:
    """Return what a plugin reads of the teacher: its own `reads_teacher`, else "full" if a hook takes `teacher`."""
    declared = getattr(plugin, "reads_teacher", None)
    if declared in LEVELS:
        level: Reads = declared
        return level
    hooks = answered(type(plugin))
    takes = any("teacher" in hooks[hook].signature.parameters for hook in _HOOKS if hook in hooks)
    return "full" if takes else "nothing"


def serves(kind: Any) -> Reads:
    """Return the most that a kind of cache serves; "linear" where its class does not say."""
    declared = getattr(kind, "serves", None)
    return declared if declared in LEVELS else "linear"


def is_served(reads: Reads, kind: Any) -> bool:
    """Return whether a kind of cache serves what a plugin reads."""
    return LEVELS.index(reads) <= LEVELS.index(serves(kind))
