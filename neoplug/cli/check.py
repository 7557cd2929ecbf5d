"""`neoplug check`: what holds of a plugin, and the smallest example where something does not."""

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

from neoplug.cli.arguments import AsJson
from neoplug.cli.plugins import json_ready
from neoplug.cli.screen import columns, heading, printable, say, table
from neoplug.errors import Mark, Problem, RecipeError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from neoplug.testing import Finding

HELD = ("token_loss", "token_gradient", "token_weight")  # the hooks for which there are properties


def check(
    plugin: Annotated[
        str, typer.Argument(help="A file's class, ./file.py:Class, or an installed plugin's name.", metavar="PLUGIN")
    ],
    options: Annotated[
        list[str] | None,
        typer.Argument(help="Its options, checked as in a recipe.", metavar="KEY=VALUE", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a plugin, and hold a loss to what holds for every loss.

    Builds it from its options, says which hooks it answers, and shows the smallest example of each property that a loss
    or a token weight does not have: then it exits with 1.
    """
    from neoplug.registry import SPECS, answered

    built = build(plugin, options or ())
    hooks = [hook for hook in SPECS if hook in answered(type(built))]
    report: dict[str, Any] = {
        "plugin": plugin,
        "options": {name: json_ready(getattr(built, name)) for name in options_of(built)},
        "hooks": hooks,
        "sections": fitting(hooks),
        "properties": findings(built, hooks),
        "not_checked": [hook for hook in hooks if hook not in HELD],
    }
    if as_json:
        say(json.dumps(report, indent=2, allow_nan=False))
    else:
        show(report)
    if any(one["verdict"] == "does not hold" for one in report["properties"]):
        raise typer.Exit(1)


def build(name: str, written: Sequence[str]) -> Any:
    """Build a plugin from options written KEY=VALUE.

    Raises:
        RecipeError: there is none of that name, it cannot be imported, its class is no plugin, its options are wrong.
    """
    from neoplug import registry
    from neoplug.registry import options

    cls = registry.find(name, Path.cwd()).load()
    problems = registry.class_problems(cls)
    hooks = registry.answered(cls) if not problems else {}
    if not problems and not fitting(list(hooks)):
        what = f"{', '.join(hooks)}, but no hook" if hooks else "no hook"
        problems = [Problem(f"{cls.__qualname__} answers {what} of any section", fix="write one, marked @hookimpl")]
    if "token_loss" in hooks:
        problems += registry.class_problems(cls, "loss")
    if problems:
        raise RecipeError([replace(problem, mark=place(cls, problem.what)) for problem in problems])
    return options.build(cls, values(written))


def fitting(hooks: Sequence[str]) -> list[str]:
    """Return the sections that a plugin with these hooks may stand in."""
    from neoplug.hookspecs import HOOKS_OF_SECTION

    return [section for section, wanted in HOOKS_OF_SECTION.items() if set(wanted) & set(hooks)]


def values(written: Sequence[str]) -> dict[str, Any]:
    """Read options written KEY=VALUE, the value as in a recipe. Raises RecipeError with all that cannot be read."""
    from neoplug.recipe.marks import Source, read

    found: dict[str, Any] = {}
    problems: list[Problem] = []
    for number, text in enumerate(written, start=1):
        key, equals, value = text.partition("=")
        if not (key.isidentifier() and equals and value.strip()):
            problems.append(Problem(f"`{text}` is no option", fix="an option is written key=value"))
            continue
        found[key], tree = read(Source(value, "option", Path.cwd(), f"{key}=", number))
        problems += tree.problems
    if problems:
        raise RecipeError(problems)
    return found


def place(cls: type, what: str) -> Mark | None:
    """Return the line of the method that a problem names, else of the class; None where there is no source."""
    method = re.match(rf"{re.escape(cls.__qualname__)}\.(\w+)", what)
    try:
        wanted = inspect.getattr_static(cls, method[1]) if method else cls
        wanted = getattr(wanted, "__func__", wanted)
        lines, first = inspect.getsourcelines(wanted)
        file = inspect.getsourcefile(wanted)
    except (TypeError, OSError, AttributeError):
        return None
    ahead = next(number for number, line in enumerate(lines) if re.match(r"\s*(def|class|async) ", line))
    text = lines[ahead].rstrip()
    column = len(text) - len(text.lstrip())
    return Mark(str(file), first + ahead, column + 1, len(text) - column, text)


def options_of(built: Any) -> Iterator[str]:
    """Yield the names of a plugin's options."""
    from neoplug.registry.options import fields_of

    yield from fields_of(type(built))


def findings(built: Any, hooks: Sequence[str]) -> list[dict[str, Any]]:
    """Return what became of each property of a loss or a token weight. Raises UsageError without hypothesis."""
    if not set(HELD) & set(hooks):
        return []
    if find_spec("hypothesis") is None:
        raise UsageError(
            "properties are tried by hypothesis, which is not installed\nfix: pip install 'neoplug[check]'"
        )
    from neoplug.testing import LOSS, TOKEN_WEIGHT, examine

    kits = [kit for hook, kit in (("token_loss", LOSS), ("token_weight", TOKEN_WEIGHT)) if hook in hooks]
    try:
        for kit in kits:
            kit.exemptions(built)
    except (TypeError, ValueError) as error:
        raise RecipeError([Problem(str(error), mark=place(type(built), ""))]) from error
    return [{"of": kit.kind, **told(finding)} for kit in kits for finding in examine(built, kit)]


def told(finding: "Finding") -> dict[str, Any]:
    """Return a finding as JSON holds it."""
    told: dict[str, Any] = {name: getattr(finding, name) for name in ("name", "title", "verdict", "why", "at")}
    numbers = {"found": finding.found, "expected": finding.expected}
    if (example := finding.example) is not None:
        given = {"student": example.student, "teacher": example.teacher, "labels": example.labels}
        told["example"] = {name: plain(tensor) for name, tensor in given.items()} | {"progress": example.progress}
    return told | {name: plain(tensor) for name, tensor in numbers.items() if tensor is not None}


def plain(tensor: "Tensor") -> Any:
    """Return a tensor as lists of numbers of six digits; what JSON cannot hold is text."""

    def item(value: Any) -> Any:
        if isinstance(value, list):
            return [item(inner) for inner in value]
        if isinstance(value, int):
            return value
        short = float(f"{value:.6g}")
        whole = isfinite(short) and short == int(short)
        return int(short) if whole else short if isfinite(short) else str(short)

    return item(tensor.tolist())


def show(report: dict[str, Any]) -> None:
    """Print what was found, a line a property."""
    options = [f"{name}={json.dumps(value)}" for name, value in report["options"].items()]
    say("  ".join([report["plugin"], *options]))
    say(f"answers {', '.join(report['hooks'])}; fits under {', '.join(report['sections'])}")
    for kind, of_kind in groupby(report["properties"], itemgetter("of")):
        heading(f"what holds for every {kind}")
        properties = list(of_kind)
        lines = columns([[f"  {one['verdict']}", one["name"], said(one)] for one in properties])
        for line, one in zip(lines, properties, strict=True):
            say(printable(line))
            show_example(one)
    if report["not_checked"]:
        heading("not checked")
        say(f"  what it does in {', '.join(report['not_checked'])}; a run of two steps shows whether it works at all")


def said(one: dict[str, Any]) -> str:
    """Return what a line says of a property: what it is, or why it was not asked."""
    words = {"exempt": f"on purpose: {one['why']}", "not tried": one["why"]}
    return str(words.get(one["verdict"], one["title"]))


def show_example(one: dict[str, Any]) -> None:
    """Print how a property does not hold, the smallest example below it."""
    if one["verdict"] != "does not hold":
        return
    say(printable(f"    {one['why']}"))
    if one["at"]:
        say(f"    at {one['at']}")
    numbers = {**one.get("example", {}), **{name: one[name] for name in ("found", "expected") if name in one}}
    if numbers:
        table([[f"    {name}", json.dumps(value).replace('"', "")] for name, value in numbers.items()])
