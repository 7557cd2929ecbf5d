"""`neoplug check`: verify a plugin's class, hooks and options, and test the properties of losses and token weights."""

import inspect
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import groupby
from math import isfinite
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neoplug.cli.arguments import AsJson, Trust
from neoplug.cli.plugins import find_typed, json_ready
from neoplug.cli.screen import columns, echo, echo_json, heading, table
from neoplug.errors import Mark, Problem, RecipeError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from neoplug.testing import Finding

TESTED = ("token_loss", "token_gradient", "token_weight")  # hooks with properties in neoplug.testing


def check(
    plugin: Annotated[
        str, typer.Argument(help="A file's class, ./file.py:Class, or an installed plugin's name.", metavar="PLUGIN")
    ],
    options: Annotated[
        list[str] | None,
        typer.Argument(help="Its options, checked as in a recipe.", metavar="KEY=VALUE", show_default=False),
    ] = None,
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Check a plugin; test the properties of a loss or a token weight.

    Builds it from its options, lists the hooks that it implements, and shows the smallest example that breaks a
    property of losses or token weights; the exit code is then 1.
    """
    from neoplug.registry import SPECS, answered

    built = build(plugin, options or (), trust or ())
    hooks = [hook for hook in SPECS if hook in answered(type(built))]
    report: dict[str, Any] = {
        "plugin": plugin,
        "options": {name: json_ready(getattr(built, name)) for name in options_of(built)},
        "hooks": hooks,
        "sections": sections_of(hooks),
        "properties": findings(built, hooks),
        "not_checked": [hook for hook in hooks if hook not in TESTED],
    }
    if as_json:
        echo_json(report)
    else:
        print_report(report)
    if any(one["verdict"] == "does not hold" for one in report["properties"]):
        raise typer.Exit(1)


def build(name: str, written: Sequence[str], trust: Sequence[str] = ()) -> Any:
    """Build a plugin from options written KEY=VALUE.

    Raises:
        RecipeError: the plugin is unknown or cannot be imported, its class is not a plugin, or its options are invalid.
    """
    from neoplug import registry
    from neoplug.registry import options

    cls = find_typed(name, trust).load()
    problems = registry.class_problems(cls)
    hooks = registry.answered(cls) if not problems else {}
    if not problems and not sections_of(list(hooks)):
        what = f"{', '.join(hooks)}, but no hook" if hooks else "no hook"
        problems = [Problem(f"{cls.__qualname__} implements {what} of any section", fix="write one, marked @hookimpl")]
    if "token_loss" in hooks:
        problems += registry.class_problems(cls, "loss")
    if problems:
        raise RecipeError([replace(problem, mark=source_mark(cls, problem.what)) for problem in problems])
    return options.build(cls, parse_options(written))


def sections_of(hooks: Sequence[str]) -> list[str]:
    """Return the recipe sections that accept a plugin with these hooks."""
    from neoplug.hookspecs import HOOKS_OF_SECTION

    return [section for section, wanted in HOOKS_OF_SECTION.items() if set(wanted) & set(hooks)]


def parse_options(written: Sequence[str]) -> dict[str, Any]:
    """Return option name -> value of options written KEY=VALUE, each value parsed as in a recipe.

    Raises RecipeError that lists all invalid options.
    """
    from neoplug.recipe.yaml_reader import YamlText, read

    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for number, text in enumerate(written, start=1):
        key, equals, value = text.partition("=")
        if not (key.isidentifier() and equals and value.strip()):
            problems.append(Problem(f"`{text}` is not an option", fix="an option is written key=value"))
            continue
        tree = read(YamlText(value, "option", Path.cwd(), f"{key}=", number))
        values[key] = tree.values
        problems += tree.problems
    if problems:
        raise RecipeError(problems)
    return values


def source_mark(cls: type, what: str) -> Mark | None:
    """Return the source line of the method that the message `what` starts with, else of the class.

    Returns None where there is no source code.
    """
    method = re.match(rf"{re.escape(cls.__qualname__)}\.(\w+)", what)
    try:
        wanted = inspect.getattr_static(cls, method[1]) if method else cls
        wanted = getattr(wanted, "__func__", wanted)
        lines, first = inspect.getsourcelines(wanted)
        file = inspect.getsourcefile(wanted)
    except (TypeError, OSError, AttributeError):
        return None
    offset = next(number for number, line in enumerate(lines) if re.match(r"\s*(def|class|async) ", line))
    text = lines[offset].rstrip()
    column = len(text) - len(text.lstrip())
    return Mark(str(file), first + offset, column + 1, len(text) - column, text)


def options_of(built: Any) -> Iterator[str]:
    """Yield the names of a plugin's options."""
    from neoplug.registry.options import fields_of

    yield from fields_of(type(built))


def findings(built: Any, hooks: Sequence[str]) -> list[dict[str, Any]]:
    """Test the properties of a loss or a token weight; return a map for each, with the property and the result.

    Returns an empty list for other plugins. Raises UsageError where hypothesis is not installed.
    """
    if not set(TESTED) & set(hooks):
        return []
    if find_spec("hypothesis") is None:
        raise UsageError(
            "testing properties needs hypothesis, which is not installed\nfix: pip install 'neoplug[check]'"
        )
    from neoplug.testing import LOSS, TOKEN_WEIGHT, examine

    kits = [kit for hook, kit in (("token_loss", LOSS), ("token_weight", TOKEN_WEIGHT)) if hook in hooks]
    try:
        for kit in kits:
            kit.exemptions(built)
    except (TypeError, ValueError) as error:
        raise RecipeError([Problem(str(error), mark=source_mark(type(built), ""))]) from error
    return [{"of": kit.kind, **as_json_map(finding)} for kit in kits for finding in examine(built, kit)]


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


def print_report(report: dict[str, Any]) -> None:
    """Print a report, one line for each property."""
    options = [f"{name}={json.dumps(value)}" for name, value in report["options"].items()]
    echo("  ".join([report["plugin"], *options]))
    echo(f"implements {', '.join(report['hooks'])}; fits under {', '.join(report['sections'])}")
    for kind, of_kind in groupby(report["properties"], itemgetter("of")):
        heading(f"properties of every {kind}")
        properties = list(of_kind)
        lines = columns([[f"  {one['verdict']}", one["name"], explanation(one)] for one in properties])
        for line, one in zip(lines, properties, strict=True):
            echo(line)
            print_example(one)
    if report["not_checked"]:
        heading("not checked")
        echo(f"  its behaviour in {', '.join(report['not_checked'])}; run a recipe with it for two steps")


def explanation(one: dict[str, Any]) -> str:
    """Return a property's title, or why it was not tested."""
    reasons = {"exempt": f"on purpose: {one['why']}", "not tried": one["why"]}
    return str(reasons.get(one["verdict"], one["title"]))


def print_example(one: dict[str, Any]) -> None:
    """Print how a property fails, and the smallest example that breaks it."""
    if one["verdict"] != "does not hold":
        return
    echo(f"    {one['why']}")
    if one["at"]:
        echo(f"    at {one['at']}")
    numbers = {**one.get("example", {}), **{name: one[name] for name in ("found", "expected") if name in one}}
    if numbers:
        table([[f"    {name}", json.dumps(value).replace('"', "")] for name, value in numbers.items()])
