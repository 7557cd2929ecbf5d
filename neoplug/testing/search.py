"""Hypothesis' search for an example that breaks a property of a plugin, and what it finds: each time the same."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from torch import Tensor

from neoplug.errors import did_you_mean, line_in
from neoplug.testing.examples import Example, examples

FEW = 5  # examples of what is slow and moved by few
Property = Callable[[Any, Example], None]
Verdict = Literal["holds", "does not hold", "exempt", "not tried"]


class Broken(AssertionError):
    """A property that does not hold.

    found, expected  what the plugin gave and what it should have given; None where there is no number to it
    example          the example, where it is another than the property was asked about
    """

    def __init__(
        self, what: str, found: Tensor | None = None, expected: Tensor | None = None, example: Example | None = None
    ) -> None:
        self.what, self.found, self.expected, self.example = what, found, expected, example
        numbers = "" if found is None else f": {found.tolist()}"
        super().__init__(what + numbers + ("" if expected is None else f" instead of {expected.tolist()}"))


@dataclass(frozen=True)
class Kit:
    """What must hold for every plugin of a kind. A property's title is the first line of its docstring.

    kind     what such a plugin is called
    quick    properties on many examples; what stands behind `shape` asks for it
    slow     properties on few examples
    once     properties on an example of their own
    exempt   what a plugin may break on purpose, if its attribute `exempt` says why: {property: reason}
    absent   says of a plugin what there is nothing to ask about: {property: reason}
    needs    {property: (another, reason)}: not tried where the other is broken
    """

    kind: str
    quick: Mapping[str, Property]
    slow: Mapping[str, Property] = field(default_factory=dict)
    once: Mapping[str, Callable[[Any], None]] = field(default_factory=dict)
    exempt: Sequence[str] = ()
    absent: Callable[[Any], Mapping[str, str]] = lambda plugin: {}
    needs: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @cached_property
    def properties(self) -> dict[str, Callable[..., None]]:
        """All properties by name."""
        return {**self.quick, **self.slow, **self.once}

    def title(self, name: str) -> str:
        """Return what a property says, in a line."""
        return (inspect.getdoc(self.properties[name]) or "").partition("\n")[0].rstrip(".")

    def exemptions(self, plugin: Any) -> dict[str, str]:
        """Return {property: reason} of what it breaks on purpose. Raises ValueError for what none may break."""
        declared = dict(getattr(plugin, "exempt", {}))
        for name in declared.keys() - set(self.exempt):
            meant = did_you_mean(name, self.exempt)
            may = f"; it may name {', '.join(self.exempt)}" if self.exempt else ""
            raise ValueError(f"{type(plugin).__name__}.exempt names `{name}`{meant}{may}")
        return declared

    def hold(self, plugin: Any, max_examples: int) -> None:
        """Raise at the first property that does not hold, hypothesis' smallest example beside it."""
        exempt = self.exemptions(plugin)
        for properties, count in ((self.quick, max_examples), (self.slow, FEW)):
            _search(plugin, [check for name, check in properties.items() if name not in exempt], count)
        for check in self.once.values():
            check(plugin)


@dataclass(frozen=True, eq=False)
class Finding:
    """What became of one property.

    name, title      of the property
    why              why it is exempt or not tried; how it does not hold
    at               file:line in the plugin where it crashed
    example          the smallest that breaks it
    found, expected  the numbers that the plugin gave there, and those that it should have given
    """

    name: str
    title: str
    verdict: Verdict
    why: str = ""
    at: str = ""
    example: Example | None = None
    found: Tensor | None = None
    expected: Tensor | None = None


def examine(plugin: Any, kit: Kit, *, max_examples: int = 40) -> list[Finding]:
    """Try every property, each to its smallest example, and return what became of it."""
    skipped = {**kit.exemptions(plugin), **kit.absent(plugin)}
    caught: dict[str, _Caught] = {}
    for properties, count in ((kit.quick, max_examples), (kit.slow, FEW)):
        asked = {name: check for name, check in properties.items() if name not in skipped}
        while "shape" not in caught and (found := _broken(plugin, asked, count, shrink=False)):
            alone = {found.name: asked.pop(found.name)}  # drawing costs most, so all share examples until one breaks
            caught[found.name] = _broken(plugin, alone, count) or found
            skipped |= {name: why for name, (needed, why) in kit.needs.items() if needed in caught}
            asked = {name: check for name, check in asked.items() if name not in skipped}
    if "shape" not in caught:
        caught |= {name: found for name, check in kit.once.items() if (found := _crash(plugin, name, check))}
    return [_finding(plugin, kit, name, skipped, caught) for name in kit.properties]


@dataclass(frozen=True, eq=False)
class _Caught:
    """What the search for one property ended with."""

    name: str
    error: BaseException
    example: Example | None = None


def _search(plugin: Any, properties: Sequence[Property], max_examples: int, shrink: bool = True) -> None:
    """Let hypothesis look for an example that fails; the last that it fails on is the smallest."""
    from hypothesis import HealthCheck, Phase, given, settings

    @settings(
        max_examples=max_examples, derandomize=True, deadline=None, database=None, report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,), suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(examples())
    def holds(example: Example) -> None:
        for check in properties:
            check(plugin, example)

    holds()


def _broken(plugin: Any, properties: Mapping[str, Property], max_examples: int, shrink: bool = True) -> _Caught | None:
    """Return what breaks one of the properties, on the smallest example or the first; None where all hold."""
    last: list[_Caught] = []

    def tried(name: str, check: Property) -> Property:
        def run(plugin: Any, example: Example) -> None:
            try:
                check(plugin, example)
            except (Exception, SystemExit) as error:
                last[:] = [_Caught(name, error, example)]
                raise

        return run

    try:
        _search(plugin, [tried(*one) for one in properties.items()], max_examples, shrink)
    except (Exception, SystemExit):  # hypothesis' own, where an answer changes when it is asked for again
        return last[0]
    return None


def _crash(plugin: Any, name: str, check: Callable[[Any], None]) -> _Caught | None:
    try:
        check(plugin)
    except (Exception, SystemExit) as error:
        return _Caught(name, error)
    return None


def _finding(plugin: Any, kit: Kit, name: str, skipped: Mapping[str, str], caught: Mapping[str, _Caught]) -> Finding:
    title = kit.title(name)
    if name in skipped:
        return Finding(name, title, "exempt" if name in kit.exemptions(plugin) else "not tried", skipped[name])
    if name not in caught and "shape" in caught:
        return Finding(name, title, "not tried", "`shape` comes first")
    if name not in caught:
        return Finding(name, title, "holds")
    error, example = caught[name].error, caught[name].example
    if isinstance(error, Broken):
        example = error.example or example
        return Finding(name, title, "does not hold", error.what, "", example, error.found, error.expected)
    crash = f"it crashes: {type(error).__name__}: {error}"
    return Finding(name, title, "does not hold", crash, _place(plugin, error), example)


def _place(plugin: Any, error: BaseException) -> str:
    """Return the last line of the plugin's own file that a crash came through."""
    try:
        own = inspect.getsourcefile(type(plugin)) or ""
    except TypeError:
        return ""
    line = line_in(error, own)
    return f"{own}:{line}" if line else ""
