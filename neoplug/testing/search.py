"""Hypothesis' search for an example that breaks a property of a loss, and what it finds. The same for the same loss.

from neoplug.testing import check_loss

def test_jeffreys():
    check_loss(Jeffreys())
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from traceback import extract_tb
from typing import Any, Literal

from torch import Tensor

from neoplug.testing.conformance import (
    ALONE,
    IN_A_STEP,
    PROPERTIES,
    Broken,
    Property,
    check_large_vocabulary,
    exemptions,
)  # fmt: skip
from neoplug.testing.examples import Example, examples, hook

LARGE = "large_vocabulary"
FEW = 5  # examples of a batch's whole way
NEEDS = {"finite_differences": ("chunks", "it asks for tokens that do not depend on one another")}
Verdict = Literal["holds", "does not hold", "exempt", "not tried"]


@dataclass(frozen=True, eq=False)
class Finding:
    """What became of one property.

    name, title      of the property
    why              why it is exempt or not tried; how it does not hold
    at               file:line in the plugin where it crashed
    example          the smallest that breaks it
    found, expected  the numbers that the loss gave there, and those that it should have given
    """

    name: str
    title: str
    verdict: Verdict
    why: str = ""
    at: str = ""
    example: Example | None = None
    found: Tensor | None = None
    expected: Tensor | None = None


def check_loss(loss: Any, *, max_examples: int = 25) -> None:
    """Hold a loss to every property that it is not exempt from; the examples are the same each time.

    max_examples  how many examples hypothesis tries

    Raises AssertionError at a property that does not hold, hypothesis' smallest example beside it.
    """
    exempt = exemptions(loss)
    _search(loss, [check for name, check in ALONE.items() if name not in exempt], max_examples)
    _search(loss, list(IN_A_STEP.values()), FEW)
    check_large_vocabulary(loss)


def examine(loss: Any, *, max_examples: int = 50) -> list[Finding]:
    """Try every property of a loss, each to its smallest example, and return what became of it."""
    skipped = _skipped(loss)
    caught: dict[str, _Caught] = {}
    for names, count in ((ALONE, max_examples), (IN_A_STEP, FEW)):
        asked = [name for name in names if name not in skipped]
        while "shape" not in caught and (found := _broken(loss, asked, count, shrink=False)):
            asked.remove(found.name)  # drawing costs most, so all share the examples until one breaks
            caught[found.name] = _broken(loss, [found.name], count) or found
            skipped |= {name: NEEDS[name][1] for name in NEEDS if NEEDS[name][0] in caught}
            asked = [name for name in asked if name not in skipped]
    if "shape" not in caught and (large := _large(loss)):
        caught[LARGE] = large
    return [_finding(loss, name, skipped, caught) for name in (*PROPERTIES, LARGE)]


def _skipped(loss: Any) -> dict[str, str]:
    """Return {property: reason} of what a loss is not asked from the start."""
    absent = {"closed_form": "there is no token_gradient"} if hook(loss, "token_gradient") is None else {}
    return exemptions(loss) | absent


def title(name: str) -> str:
    """Return what a property says, in a line."""
    check = check_large_vocabulary if name == LARGE else PROPERTIES[name]
    return (inspect.getdoc(check) or "").partition("\n")[0].rstrip(".")


@dataclass(frozen=True, eq=False)
class _Caught:
    """What the search for one property ended with."""

    name: str
    error: BaseException
    example: Example | None = None


def _search(loss: Any, properties: Sequence[Property], max_examples: int, shrink: bool = True) -> None:
    """Let hypothesis look for an example that fails; the last that it fails on is the smallest."""
    from hypothesis import HealthCheck, Phase, given, settings

    @settings(
        max_examples=max_examples, derandomize=True, deadline=None, database=None, report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,), suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(examples())
    def holds(example: Example) -> None:
        for check in properties:
            check(loss, example)

    holds()


def _broken(loss: Any, names: Sequence[str], max_examples: int, shrink: bool = True) -> _Caught | None:
    """Return what breaks one of the properties, on the smallest example or the first; None where all hold."""
    last: list[_Caught] = []

    def tried(name: str) -> Property:
        def run(loss: Any, example: Example) -> None:
            try:
                PROPERTIES[name](loss, example)
            except (Exception, SystemExit) as error:
                last[:] = [_Caught(name, error, example)]
                raise

        return run

    try:
        _search(loss, [tried(name) for name in names], max_examples, shrink)
    except (Exception, SystemExit):  # hypothesis' own, where an answer changes when it is asked for again
        return last[0]
    return None


def _large(loss: Any) -> _Caught | None:
    try:
        check_large_vocabulary(loss)
    except (Exception, SystemExit) as error:
        return _Caught(LARGE, error)
    return None


def _finding(loss: Any, name: str, skipped: Mapping[str, str], caught: Mapping[str, _Caught]) -> Finding:
    if name in exemptions(loss):
        return Finding(name, title(name), "exempt", skipped[name])
    if name in skipped:
        return Finding(name, title(name), "not tried", skipped[name])
    if "shape" in caught and name != "shape":
        return Finding(name, title(name), "not tried", "it asks for one float32 number for each token")
    if name not in caught:
        return Finding(name, title(name), "holds")
    error, example = caught[name].error, caught[name].example
    if isinstance(error, Broken):
        example = error.example or example
        return Finding(name, title(name), "does not hold", error.what, "", example, error.found, error.expected)
    crash = f"it crashes: {type(error).__name__}: {error}"
    return Finding(name, title(name), "does not hold", crash, _place(loss, error), example)


def _place(loss: Any, error: BaseException) -> str:
    """Return the last line of the plugin's own file that a crash came through."""
    try:
        own = inspect.getsourcefile(type(loss))
    except TypeError:
        own = None
    lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == own]
    return f"{own}:{lines[-1]}" if lines else ""
