"""`neoplug check`: verify a plugin's class, hooks and options, and test the properties of its kind."""

import json
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any

import typer

from neoplug.cli.arguments import AsJson, Trust
from neoplug.cli.check_package import check_package
from neoplug.cli.plugin_report import is_broken, report_on, validate_class
from neoplug.cli.plugins import find_typed
from neoplug.cli.screen import columns, echo, echo_json, heading, table
from neoplug.errors import Problem, RecipeError, UsageError


def check(
    plugin: Annotated[
        str | None,
        typer.Argument(
            help="A file's class, ./file.py:Class, or an installed plugin's name.", metavar="PLUGIN", show_default=False
        ),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Argument(help="Its options, checked as in a recipe.", metavar="KEY=VALUE", show_default=False),
    ] = None,
    package: Annotated[
        str | None,
        typer.Option(
            help="Check every plugin that this installed package registers, with default options, in one table.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Check a plugin, or all of a package; test the properties of its kind.

    Builds it from its options, lists the hooks that it implements, and tests what holds for every plugin of its kind: a
    loss, token weight, adapter, optimizer, schedule, stop, tracker, treatment, probe, source, preparation, cache or
    way to load a model. Where something does not hold, it says how, with the smallest example, and the exit code is 1.
    """
    from neoplug.registry.options import build

    if (plugin is None) == (package is None):
        raise UsageError("name a plugin or a package\nfix: neoplug check PLUGIN, or neoplug check --package NAME")
    if package is not None:
        check_package(package, as_json)
        return
    cls = find_typed(str(plugin), trust or ()).load()
    validate_class(cls)
    report = report_on(build(cls, parse_options(options or ())), str(plugin))
    if as_json:
        echo_json(report)
    else:
        print_report(report)
    if is_broken(report):
        raise typer.Exit(1)


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
