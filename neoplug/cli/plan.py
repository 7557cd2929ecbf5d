"""`neoplug plan`: what a run would do and cost."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from neoplug.cli.arguments import AsJson, Overrides, RecipeArgument
from neoplug.cli.screen import heading, say, size, table
from neoplug.cli.watch import notes
from neoplug.errors import UsageError

DIGITS = 30  # of a number that somebody may mean
Wanted = Annotated[
    str | None,
    typer.Option(
        "--match", help="Find the size, as LoRA's r, that gives N trainable parameters.", metavar="parameters=N"
    ),
]


def plan(recipe: RecipeArgument, overrides: Overrides = None, match: Wanted = None, as_json: AsJson = False) -> None:
    """Check a recipe and show what a run would do.

    Shows each value with its origin, plugins, parameters, data, steps, memory and disk. Loads no weights.
    """
    wanted = parameters(match)
    from neoplug import recipe as recipes

    checked = recipes.load(recipe, overrides or ())

    from neoplug.runs.plan import plan as work_out

    with checked.marking(), notes():  # what a plugin fitted to the model it says there
        found = work_out(checked, wanted)
    if as_json:
        say(json.dumps(found, indent=2))
    else:
        show(found)


def parameters(match: str | None) -> int | None:
    """Return the number in `parameters=N`. Raises UsageError for other words."""
    if match is None:
        return None
    found = re.fullmatch(r"parameters=([0-9]+(?:_[0-9]+)*)", match)
    if found is None or len(found[1]) > DIGITS:
        raise UsageError(
            f"--match does not know `{match}`\n"
            "why: what can be matched is the number of trainable parameters, a whole number\n"
            "fix: --match parameters=2_000_000"
        )
    return int(found[1])


def show(found: Mapping[str, Any]) -> None:
    """Print a plan."""
    heading(f"recipe {found['name']}")
    table([[f"  {key}", value, place] for key, value, place in values(found["recipe"], found["origin"])])
    heading("plugins")
    table([[f"  {p['section']}", p["name"], f"{p['package']} {p['version']}", p["target"]] for p in found["plugins"]])
    heading("models")
    table([[f"  {role}", *model_cells(model)] for role, model in found["models"].items()])
    parameters = found["parameters"]
    share = parameters["trainable"] / parameters["total"]
    say(f"  trainable: {parameters['trainable']:,} of {parameters['total']:,} parameters ({share:.2%})")
    heading("data")
    for line in found["data"]["lines"]:
        say(f"  {line}")
    heading("the run")
    say(f"  {found['steps']:,} steps, {found['epochs']:.2f} epochs")
    say(f"  {found['tokens']:,} tokens, {found['answer_tokens']:,} of them scored")
    for part in ("memory", "disk"):
        heading(f"{part}, estimated")
        table([[f"  {key.replace('_', ' ')}", size(count)] for key, count in found[f"{part}_bytes"].items()])
    if "match" in found:
        heading("match")
        say(f"  {found['match']['override']}")
        say(
            "  "
            + "{option} {value}: {trainable:,} trainable parameters, {difference:+.2%} of {wanted:,}".format(
                **found["match"]
            )
        )
    if found["warnings"]:
        heading("warnings")
        for line in found["warnings"]:
            say(f"  {line}")


def model_cells(model: Mapping[str, Any]) -> list[str]:
    """Return source, parameters, dtype and device, bytes."""
    placed = f"{model['dtype']} on {model['device']}"
    source = f"{model['source']} with the adapter {model['adapter']}" if model["adapter"] else model["source"]
    return [source, f"{model['parameters']:,} parameters", placed, size(model["bytes"])]


def values(recipe: Mapping[str, Any], origin: Mapping[str, str], path: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield each value of the resolved recipe: dotted key, value, and where it came from."""
    for key, value in recipe.items():
        name = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping) and value:
            yield from values(value, origin, name)
        else:
            yield name, json.dumps(value, ensure_ascii=False), origin.get(name, "default")
