"""Deterministic search by hypothesis for the smallest example on which a property of a plugin does not hold."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from torch import Tensor

from neoplug.errors import NeoplugError, did_you_mean, line_in
from neoplug.registry import answered
from neoplug.testing.loss_examples import Example, examples

ROUNDING = 1e-4  # tolerance of float32, relative to 1 + the size of the values
FEW = 5  # number of examples for slow properties
# Hooks that give a plugin a model before the first loss.
GIVE_MODELS = ("prepare_student", "after_load", "on_evaluate", "add_adapter", "param_groups", "make_optimizer")
Property = Callable[[Any, Example], None]
Verdict = Literal["holds", "does not hold", "exempt", "not tried"]


class Broken(AssertionError):
    """A property that does not hold.

    found, expected  the plugin's numbers and the correct ones; None where the property has none
    example          the example on which it fails, where the property derived it from the given example
    """

    def __init__(
        self, what: str, found: Tensor | None = None, expected: Tensor | None = None, example: Example | None = None
    ) -> None:
        self.what, self.found, self.expected, self.example = what, found, expected, example
        numbers = "" if found is None else f": {found.tolist()}"
        super().__init__(what + numbers + ("" if expected is None else f" instead of {expected.tolist()}"))


class NotApplicable(Exception):
    """A property that does not apply to a plugin, with the reason."""


@contextmanager
def as_broken() -> Iterator[None]:
    """Raise Broken in place of the error that a run would show."""
    try:
        yield
    except NeoplugError as error:
        what, *more = error.message().split("\n")
        raise Broken("; ".join([what, *(line for line in more if line.startswith("why: "))])) from error


def check_close(
    found: Tensor, expected: Tensor, what: str, example: Example | None = None, tolerance: float = ROUNDING
) -> None:
    """Raise Broken unless the numbers differ by at most `tolerance`, relative to 1 + the largest value of their row.

    NaN equals NaN here, since another property requires finite numbers.
    """
    same = (found == expected) | (found.isnan() & expected.isnan())
    size = expected.abs().amax(-1, keepdim=True) if expected.dim() > 1 else expected.abs()
    difference = ((found - expected).abs() / (1 + size)).masked_fill(same, 0)
    largest = difference.max().item() if found.numel() else 0.0
    if not largest <= tolerance:
        raise Broken(f"{what} is off by {largest:.2g}", found, expected, example)


@dataclass(frozen=True)
class Kit:
    """The conformance tests (properties) of one kind of plugin. A property's title is the first line of its docstring.

    kind     name of the kind, for messages
    quick    properties that are tested on many examples; those after `shape` require it to hold
    slow     properties that are tested on few examples
    once     properties that construct their example, and are tested once
    exempt   properties that a plugin may break, if its attribute `exempt` maps them to a reason
    absent   function: plugin -> {property: reason} of the properties that do not apply to it
    needs    property -> (required property, reason): it is not tested where the required one does not hold
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
        """Return a property's title."""
        return (inspect.getdoc(self.properties[name]) or "").partition("\n")[0].rstrip(".")

    def exemptions(self, plugin: Any) -> dict[str, str]:
        """Return the plugin's attribute `exempt`, {property: reason}.

        Raises ValueError for a property that the kit's `exempt` does not list.
        """
        declared = dict(getattr(plugin, "exempt", {}))
        for name in declared.keys() - set(self.exempt):
            suggestion = did_you_mean(name, self.exempt)
            may = f"; it may name {', '.join(self.exempt)}" if self.exempt else ""
            raise ValueError(f"{type(plugin).__name__}.exempt names `{name}`{suggestion}{may}")
        return declared

    def hold(self, plugin: Any, max_examples: int) -> None:
        """Raise AssertionError at the first property that does not hold, with the smallest example that breaks it."""
        exempt = self.exemptions(plugin)
        for properties, count in ((self.quick, max_examples), (self.slow, FEW)):
            if tested := [check for name, check in properties.items() if name not in exempt]:
                _search(plugin, tested, count)
        for name, check in self.once.items():
            if name not in exempt:
                with suppress(NotApplicable):
                    check(plugin)


def properties_of(methods: Any) -> dict[str, Callable[[Any], None]]:
    """Return the properties that are the methods without underscore of an object, by name."""
    return {name: getattr(methods, name) for name in vars(type(methods)) if not name.startswith("_")}


@dataclass(frozen=True, eq=False)
class Finding:
    """The result of testing one property.

    name, title      of the property
    verdict          holds, does not hold, exempt, or not tried
    why              why it is exempt or not tried, or how it fails
    at               file:line in the plugin where it crashed
    example          the smallest example that breaks it
    found, expected  the plugin's numbers for that example, and the correct ones
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
    """Test every property of a kit; return a finding for each, with the smallest example where it does not hold."""
    skipped = {**kit.exemptions(plugin), **kit.absent(plugin)}
    caught: dict[str, _Failure] = {}
    for properties, count in ((kit.quick, max_examples), (kit.slow, FEW)):
        remaining = {name: check for name, check in properties.items() if name not in skipped}
        # Drawing is slow, so all properties share examples; one that fails is then searched alone.
        while remaining and "shape" not in caught and (found := _failure(plugin, remaining, count, shrink=False)):
            alone = {found.name: remaining.pop(found.name)}
            caught[found.name] = _failure(plugin, alone, count) or found
            skipped |= {name: why for name, (needed, why) in kit.needs.items() if needed in caught}
            remaining = {name: check for name, check in remaining.items() if name not in skipped}
    if "shape" in caught and not isinstance(caught["shape"].error, Broken) and (why := _needs_models(plugin)):
        return [Finding(name, kit.title(name), "not tried", why) for name in kit.properties]
    if "shape" not in caught:
        once = {name: check for name, check in kit.once.items() if name not in skipped}
        caught |= {name: found for name, check in once.items() if (found := _crash(plugin, name, check))}
    return [_finding(plugin, kit, name, skipped, caught) for name in kit.properties]


def _needs_models(plugin: Any) -> str:
    """Return why a plugin that crashes on examples cannot be tested: a hook before the first step gives it the models.

    Returns an empty text where no hook does.
    """
    hooks = answered(type(plugin))
    giving = [hook for hook in GIVE_MODELS if hook in hooks and "model" in hooks[hook].signature.parameters]
    if not giving:
        return ""
    return f"`{giving[0]}` gives it a model of the run, which a check does not have; run a recipe with it for two steps"


@dataclass(frozen=True, eq=False)
class _Failure:
    """The exception with which a property failed, and the example."""

    name: str
    error: BaseException
    example: Example | None = None


def _search(plugin: Any, properties: Sequence[Property], max_examples: int, shrink: bool = True) -> None:
    """Test properties on examples. Raises the error of one that fails, last called with the smallest such example."""
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


def _failure(
    plugin: Any, properties: Mapping[str, Property], max_examples: int, shrink: bool = True
) -> _Failure | None:
    """Return the failure of one of the properties, on the smallest or the first example; None where all hold."""
    last: list[_Failure] = []

    def recorded(name: str, check: Property) -> Property:
        def run(plugin: Any, example: Example) -> None:
            try:
                check(plugin, example)
            except (Exception, SystemExit) as error:
                last[:] = [_Failure(name, error, example)]
                raise

        return run

    try:
        _search(plugin, [recorded(*one) for one in properties.items()], max_examples, shrink)
    except (Exception, SystemExit):  # or hypothesis' own, where a result changes between calls
        return last[0]
    return None


def _crash(plugin: Any, name: str, check: Callable[[Any], None]) -> _Failure | None:
    """Return the failure of a property that constructs its example; None where it holds."""
    try:
        check(plugin)
    except (Exception, SystemExit) as error:
        return _Failure(name, error)
    return None


def _finding(plugin: Any, kit: Kit, name: str, skipped: Mapping[str, str], caught: Mapping[str, _Failure]) -> Finding:
    """Return the finding on a property, from {property: reason} of those not tested and the failures."""
    title = kit.title(name)
    if name in skipped:
        return Finding(name, title, "exempt" if name in kit.exemptions(plugin) else "not tried", skipped[name])
    if name not in caught and "shape" in caught:
        return Finding(name, title, "not tried", "it needs `shape` to hold")
    if name not in caught:
        return Finding(name, title, "holds")
    error, example = caught[name].error, caught[name].example
    if isinstance(error, NotApplicable):
        return Finding(name, title, "not tried", str(error))
    if isinstance(error, Broken):
        example = error.example or example
        return Finding(name, title, "does not hold", error.what, "", example, error.found, error.expected)
    crash = f"it crashes: {type(error).__name__}: {error}"
    return Finding(name, title, "does not hold", crash, _place(plugin, error), example)


def _place(plugin: Any, error: BaseException) -> str:
    """Return file:line of the last frame of a crash in the plugin's own file; an empty string without one."""
    try:
        own = inspect.getsourcefile(type(plugin)) or ""
    except TypeError:
        return ""
    line = line_in(error, own)
    return f"{own}:{line}" if line else ""
