"""`neoplug check --package`: the checks of every plugin that an installed package registers, one line each."""

from collections import Counter
from importlib.metadata import PackageNotFoundError, distributions, version
from typing import TYPE_CHECKING, Any

import typer

from neoplug.cli.plugin_report import is_broken, report_on, validate_class
from neoplug.cli.screen import echo, echo_json, table
from neoplug.errors import NeoplugError, RecipeError, UsageError, did_you_mean

if TYPE_CHECKING:
    from neoplug.registry import Entry

HEADER = ("plugin", "fits under", "result", "")
PASSES, FAILS, NEEDS_OPTIONS = "passes", "fails", "needs options"


def check_package(package: str, as_json: bool) -> None:
    """Check every plugin of a package with default options, and print a table. Exits with 1 where one fails.

    Raises UsageError where no such package is installed, or it registers no plugin.
    """
    entries = entries_of(package)
    reports = [checked(entry) for entry in entries]
    failing = [report["plugin"] for report in reports if report["result"] == FAILS]
    if as_json:
        echo_json({"package": entries[0].package, "version": entries[0].version, "plugins": reports})
    else:
        counts = Counter(report["result"] for report in reports)
        numbers = ", ".join(f"{count} {result}" for result, count in counts.items())
        echo(f"{entries[0].package} {entries[0].version}: {numbers}")
        table([[one["plugin"], " ".join(one["sections"]), one["result"], one["why"]] for one in reports], header=HEADER)
        for name in failing:
            echo(f"`neoplug check {entries[0].package}:{name}` shows more")
    if failing:
        raise typer.Exit(1)


def entries_of(package: str) -> "list[Entry]":
    """Return the plugins that a package registers. Raises UsageError where there are none."""
    from neoplug.registry import installed
    from neoplug.registry.discovery import canonical

    entries = installed()
    if own := [entry for entry in entries if canonical(entry.package) == canonical(package)]:
        return own
    registering = sorted({entry.package for entry in entries})
    try:
        what = f"{package} {version(package)} registers no plugin: it has no entry point in the group `neoplug`"
    except (PackageNotFoundError, ValueError):
        names = dict.fromkeys([*registering, *sorted(found.name for found in distributions() if found.name)])
        what = f"no package {package} is installed{did_you_mean(package, names)}"
    raise UsageError(f"{what}\nfix: name one that registers plugins: {', '.join(registering)}")


def checked(entry: "Entry") -> dict[str, Any]:
    """Return the report on a plugin as `neoplug check` prints it in JSON, with `result` and `why`."""
    from neoplug.registry.options import build, options_model

    lists: dict[str, Any] = {name: [] for name in ("hooks", "sections", "properties", "not_checked")}
    report = {"plugin": entry.name, "options": {}, **lists}
    try:
        cls = entry.load()
        validate_class(cls)
        options_model(cls)
    except NeoplugError as error:
        return report | outcome(FAILS, error)
    try:
        plugin: Any = build(cls, {})
    except RecipeError as error:
        is_refusal = isinstance(error.__cause__ or error, ValueError | NeoplugError)
        return report | outcome(NEEDS_OPTIONS if is_refusal else FAILS, error)
    try:
        report = report_on(plugin, entry.name)
    except RecipeError as error:
        return report | outcome(FAILS, error)
    return report | {"result": FAILS if is_broken(report) else PASSES, "why": summary(report)}


def outcome(result: str, error: NeoplugError) -> dict[str, str]:
    """Return a result with the first line of the error as its reason."""
    return {"result": result, "why": error.message().partition("\n")[0]}


def summary(report: dict[str, Any]) -> str:
    """Return which properties do not hold, how many do, and what was not checked."""
    broken = [one["name"] for one in report["properties"] if one["verdict"] == "does not hold"]
    holding = sum(one["verdict"] == "holds" for one in report["properties"])
    parts = [f"does not hold: {', '.join(broken)}" if broken else "", f"{holding} properties hold" if holding else ""]
    parts += [f"not checked: {', '.join(report['not_checked'])}" if report["not_checked"] else ""]
    return "; ".join(filter(None, parts))
