"""`neoplug plan`: show what a run would do, and its memory and disk use."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from neoplug.cli.arguments import AsJson, Overrides, RecipeArgument, Scale, Trust
from neoplug.cli.screen import echo, echo_json, heading, size, table
from neoplug.cli.watch import log_to_stderr
from neoplug.errors import UsageError

DIGITS = 30  # longest number that --match accepts
Wanted = Annotated[
    str | None,
    typer.Option(
        "--match", help="Find the size, as LoRA's r, that gives N trainable parameters.", metavar="parameters=N"
    ),
]


def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    scale: Scale = None,
    match: Wanted = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Plan from shipped facts about the models, without network or data.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Estimate memory by a formula, in place of a step on shapes.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Train for three steps, of which nothing is kept, and extrapolate.")
    ] = False,
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Check a recipe and show what a run would do.

    Shows each value with its origin, plugins, parameters, data, steps, memory and disk. Loads no weights: the memory is
    that of a training step on models that have shapes and no data.
    """
    wanted = parameters_of(match)
    if offline and wanted is not None:
        raise UsageError("--offline does not support --match\nfix: leave one of them out")
    if offline and measure:
        raise UsageError("--offline does not support --measure\nfix: leave one of them out")
    from neoplug import recipe as recipes
    from neoplug.recipe.scale import at_scale

    changes = at_scale(recipe, scale) if scale else None
    checked = recipes.load(recipe, overrides or (), changes, trust=trust or ())

    from neoplug.runs.offline_plan import offline_plan
    from neoplug.runs.plan import plan as make_plan

    with checked.marking(), log_to_stderr():  # plugins log what they change to fit the model
        planned = offline_plan(checked, quick=quick) if offline else make_plan(checked, wanted, quick=quick)
        if measure:
            from neoplug.runs.measured_steps import measure_steps

            planned["measured"] = measure_steps(checked).as_dict()
    if as_json:
        echo_json(planned)
    elif offline:
        print_offline(planned)
    else:
        print_plan(planned)


def parameters_of(match: str | None) -> int | None:
    """Return the number in `parameters=N`. Raises UsageError for any other text."""
    if match is None:
        return None
    number = re.fullmatch(r"parameters=([0-9]+(?:_[0-9]+)*)", match)
    if number is None or len(number[1]) > DIGITS:
        raise UsageError(
            f"--match does not support `{match}`\n"
            "why: it matches the number of trainable parameters, an integer\n"
            "fix: --match parameters=2_000_000"
        )
    return int(number[1])


def print_plan(plan: Mapping[str, Any]) -> None:
    """Print a plan."""
    heading(f"recipe {plan['name']}")
    table([[f"  {key}", value, origin] for key, value, origin in recipe_rows(plan["recipe"], plan["origin"])])
    heading("plugins")
    table([[f"  {p['section']}", p["name"], f"{p['package']} {p['version']}", p["target"]] for p in plan["plugins"]])
    print_models(plan)
    heading("data")
    table([[f"  {line}"] for line in plan["data"]["lines"]])
    heading("the run")
    echo(f"  {plan['steps']:,} steps, {plan['epochs']:.2f} epochs")
    echo(f"  {plan['tokens']:,} tokens, {plan['answer_tokens']:,} of them scored")
    for part in ("memory", "disk"):
        print_sizes(plan, part)
    if "measured" in plan:
        measured, foretold = plan["measured"], plan["memory_bytes"]["total"] - plan["memory_bytes"]["at_start"]
        heading("measured")
        echo(f"  {', '.join(f'{seconds:.2f}' for seconds in measured['seconds'])} seconds a step")
        minutes = measured["run_seconds"] / 60
        echo(f"  {minutes:,.1f} minutes for all {plan['steps']:,} steps, without loading and evaluation")
        echo(f"  {size(measured['tensor_bytes'])} of tensors at their peak, foretold {size(foretold)}")
    if "match" in plan:
        heading("match")
        echo(f"  {plan['match']['override']}")
        echo(
            "  "
            + "{option} {value}: {trainable:,} trainable parameters, {difference:+.2%} of {wanted:,}".format(
                **plan["match"]
            )
        )
    print_warnings(plan)


def print_warnings(plan: Mapping[str, Any]) -> None:
    """Print the warnings of a plan."""
    if plan["warnings"]:
        heading("warnings")
        table([[f"  {line}"] for line in plan["warnings"]])


def print_offline(plan: Mapping[str, Any]) -> None:
    """Print a plan from shipped facts."""
    print_models(plan)
    heading("the run, with rows of `max_length` tokens")
    steps = "steps depend on the data" if plan["steps"] is None else f"{plan['steps']:,} steps"
    echo(f"  {steps}, at most {plan['tokens_per_step']:,} tokens each")
    table([[f"  {role}", f"{count / 1e12:,.1f} TFLOPs a step"] for role, count in plan["flops_per_step"].items()])
    print_sizes(plan, "memory")
    print_warnings(plan)


def print_models(plan: Mapping[str, Any]) -> None:
    """Print the models of a plan, and how much of the student is trained."""
    heading("models")
    table([[f"  {role}", *model_cells(model)] for role, model in plan["models"].items()])
    parameters = plan["parameters"]
    share = parameters["trainable"] / parameters["total"]
    echo(f"  trainable: {parameters['trainable']:,} of {parameters['total']:,} parameters ({share:.2%})")


def print_sizes(plan: Mapping[str, Any], part: str) -> None:
    """Print the sizes of a plan in memory or on disk."""
    heading(f"{part}, estimated")
    table([[f"  {key.replace('_', ' ')}", size(count)] for key, count in plan[f"{part}_bytes"].items()])
    if part == "memory":
        resident = plan["resident_bytes"]
        echo(f"  about {size(resident['total'])} of main memory, of which imports take {size(resident['imports'])}")


def model_cells(model: Mapping[str, Any]) -> list[str]:
    """Return the cells of a model's row: source, number of parameters, dtype and device, size in memory."""
    placed = f"{model['dtype']} on {model['device']}"
    source = f"{model['source']} with the adapter {model['adapter']}" if model["adapter"] else model["source"]
    return [source, f"{model['parameters']:,} parameters", placed, size(model["bytes"])]


def recipe_rows(recipe: Mapping[str, Any], origin: Mapping[str, str], path: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield a row for each value of the resolved recipe: dotted key, value as JSON, and its origin."""
    for key, value in recipe.items():
        name = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping) and value:
            yield from recipe_rows(value, origin, name)
        else:
            yield name, json.dumps(value, ensure_ascii=False), origin.get(name, "default")
