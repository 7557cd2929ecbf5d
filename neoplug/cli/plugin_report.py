"""The report on one plugin: what its class implements, and which properties of its kind hold."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from importlib.util import find_spec
from math import isfinite
from typing import TYPE_CHECKING, Any

from neoplug.cli.plugins import json_ready
from neoplug.errors import Problem, RecipeError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from neoplug.testing import Finding


def validate_class(cls: type) -> None:
    """Raise RecipeError, with places in its source, where a class is not a plugin of any section."""
    from neoplug.registry import answered, class_problems
    from neoplug.registry.class_source import source_mark

    problems = class_problems(cls)
    hooks = answered(cls) if not problems else {}
    if not problems and not sections_of(list(hooks)):
        what = f"{', '.join(hooks)}, but no hook" if hooks else "no hook"
        problems = [Problem(f"{cls.__qualname__} implements {what} of any section", fix="write one, marked @hookimpl")]
    if "token_loss" in hooks:
        problems += class_problems(cls, "loss")
    if problems:
        raise RecipeError([replace(problem, mark=source_mark(cls, problem.what)) for problem in problems])


def report_on(plugin: Any, name: str) -> dict[str, Any]:
    """Return the report on a plugin: its options, hooks and sections, the properties, and the hooks not checked.

    Raises UsageError where the properties cannot be tested, RecipeError where the plugin declares a wrong exemption.
    """
    from neoplug.registry import SPECS, answered

    hooks = [hook for hook in SPECS if hook in answered(type(plugin))]
    return {
        "plugin": name,
        "options": {option: json_ready(getattr(plugin, option)) for option in options_of(plugin)},
        "hooks": hooks,
        "sections": sections_of(hooks),
        "properties": findings(plugin, hooks),
        "not_checked": not_checked(hooks),
    }


def is_broken(report: dict[str, Any]) -> bool:
    """Return whether a property of the report does not hold."""
    return any(one["verdict"] == "does not hold" for one in report["properties"])


def sections_of(hooks: Sequence[str]) -> list[str]:
    """Return the recipe sections that accept a plugin with these hooks."""
    from neoplug.hookspecs import HOOKS_OF_SECTION

    return [section for section, wanted in HOOKS_OF_SECTION.items() if set(wanted) & set(hooks)]


def options_of(built: Any) -> Iterator[str]:
    """Yield the names of a plugin's options."""
    from neoplug.registry.options import fields_of

    yield from fields_of(type(built))


def findings(built: Any, hooks: Sequence[str]) -> list[dict[str, Any]]:
    """Test the properties of a plugin by the kits of its hooks; return a map of each property and its result.

    Raises UsageError where hypothesis is not installed and a kit needs it.
    """
    from neoplug.registry.class_source import source_mark
    from neoplug.testing import KITS, examine

    kits = list({kit.kind: kit for kit in (KITS[hook] for hook in KITS if hook in hooks)}.values())  # of several hooks
    if any(kit.quick for kit in kits) and find_spec("hypothesis") is None:
        raise UsageError(
            "testing properties needs hypothesis, which is not installed\nfix: pip install 'neoplug[check]'"
        )
    try:
        for kit in kits:
            kit.exemptions(built)
    except (TypeError, ValueError) as error:
        raise RecipeError([Problem(str(error), mark=source_mark(type(built), ""))]) from error
    with redirect_stdout(sys.stderr):  # what a plugin prints is no part of the report
        return [{"of": kit.kind, **as_json_map(finding)} for kit in kits for finding in examine(built, kit)]


def not_checked(hooks: Sequence[str]) -> list[str]:
    """Return the hooks that no kit calls; those of an adapter or of a loss are called with it."""
    from neoplug.testing import CALLED, KITS

    called = {name for hook in hooks if hook in KITS for name in (hook, *CALLED.get(hook, ()))}
    return [hook for hook in hooks if hook not in called]


def as_json_map(finding: "Finding") -> dict[str, Any]:
    """Return a finding as a map for JSON."""
    entry: dict[str, Any] = {name: getattr(finding, name) for name in ("name", "title", "verdict", "why", "at")}
    numbers = {"found": finding.found, "expected": finding.expected}
    if (example := finding.example) is not None:
        given = {"student": example.student, "teacher": example.teacher, "labels": example.labels}
        entry["example"] = {name: json_numbers(tensor) for name, tensor in given.items()}
        entry["example"]["progress"] = example.progress
    return entry | {name: json_numbers(tensor) for name, tensor in numbers.items() if tensor is not None}


def json_numbers(tensor: "Tensor") -> Any:
    """Return a tensor as nested lists of numbers rounded to six significant digits; infinities and NaN become text."""

    def item(value: Any) -> Any:
        if isinstance(value, list):
            return [item(inner) for inner in value]
        if isinstance(value, int):
            return value
        short = float(f"{value:.6g}")
        whole = isfinite(short) and short == int(short)
        return int(short) if whole else short if isfinite(short) else str(short)

    return item(tensor.tolist())
