"""Marks on hook specifications: how many plugins answer a hook, what an answer is, and since when the hook exists.

A mark is data on the specification's function, which the registry, the command line, the docs and the tests read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
Kind = Literal[
    "added keys",
    "documents",
    "edited batch",
    "files",
    "folder",
    "json",
    "keyword arguments",
    "module",
    "nothing",
    "number",
    "numbers",
    "optimizer",
    "parameter groups",
    "problems",
    "reason",
    "scalar",
    "signal",
    "source",
    "tensor",
    "tensors",
    "tensors by name",
    "transformers model",
]


@dataclass(frozen=True)
class Returns:
    """What a hook returns, or leaves in an argument; `answers.checks` checks it at every call of the hook.

    Shapes, dtypes and gradients are compared without reading values, so that a check never synchronises a device.

    kind       what the answer is: a check, and the words of its message
    shapes     of tensors, in letters: N rows and V columns of `student`
    gradient   whether the tensor must carry a gradient
    read_only  arguments that the hook must not write into
    """

    kind: Kind
    shapes: tuple[str, ...] = ()
    gradient: bool = False
    read_only: tuple[str, ...] = ()


def answers(rule: Literal["all", "each loss", "exactly one", "at most one"]) -> Callable[[Function], Function]:
    """Record how many plugins may implement a hook."""
    return _mark("answers", rule)


def returns(
    kind: Kind, *, shapes: tuple[str, ...] = (), gradient: bool = False, read_only: tuple[str, ...] = ()
) -> Callable[[Function], Function]:
    """Record the rule that each answer of a hook is checked against; the arguments are the fields of `Returns`."""
    return _mark("returns", Returns(kind, shapes, gradient, read_only))


def version_added(version: str) -> Callable[[Function], Function]:
    """Record the version of neoplug that introduced a hook, as "0.1".

    How a hook is changed or removed is in CONTRIBUTING.md, "Change or remove a hook".
    """
    return _mark("version_added", version)


def version_changed(version: str, what: str) -> Callable[[Function], Function]:
    """Record what a version of neoplug changed of a hook, as "gains `position`"; may be given several times."""

    def mark(function: Function) -> Function:
        changes = (*getattr(function, "version_changed", ()), (version, what))
        return _mark("version_changed", changes)(function)

    return mark


def _mark(name: str, value: Any) -> Callable[[Function], Function]:
    def mark(function: Function) -> Function:
        setattr(function, name, value)
        return function

    return mark
