"""`neoplug run`: train a student by a recipe, and print its metrics."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neoplug.cli.arguments import Overrides, RecipeArgument, Scale, Trust
from neoplug.registry.adapter_traits import AdapterTraits

if TYPE_CHECKING:
    from neoplug.registry import Plugins


def run(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    scale: Scale = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Where the run is written: by default the recipe's output_dir, else runs/RECIPE-DATE-TIME.",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    trust: Trust = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in DIR from its last checkpoint.")] = False,
) -> None:
    """Distil: evaluate, train, evaluate again.

    Writes the adapter, the metrics of each step and the result into the run's directory.
    """
    from neoplug import recipe as recipes
    from neoplug.distributed.restarts import attempt
    from neoplug.environment.memory import keep_freed
    from neoplug.recipe.scale import at_scale
    from neoplug.runs.directory import chosen_output

    keep_freed()
    changes = at_scale(recipe, scale) if scale else None
    checked = recipes.load(recipe, overrides or (), changes, trust=trust or ())
    resume = resume or attempt() > 0  # torchrun repeats the command as it was
    folder = chosen_output(output, checked.recipe.output_dir, checked.name, resume)

    from neoplug.cli import show, watch
    from neoplug.runs.execute import execute

    with watch.log_to_stderr(), watch.progress(every=checked.recipe.train.logging_steps) as progress:
        result = execute(checked, folder, resume, progress)
    if watch.is_main():
        show.print_result(result, folder, why_unmerged(checked.plugins))


def why_unmerged(plugins: "Plugins") -> str:
    """Return why the adapter of a run cannot be merged, by its traits; an empty string if it can be."""
    adapters = (plugins.section(section)[name] for section, name in plugins.named("add_adapter"))
    return next((AdapterTraits.of(adapter).cannot_merge for adapter in adapters), "")
