"""`neoplug eval`: evaluate a run's student, or any model, by a recipe."""

from typing import Annotated

import typer

from neoplug.cli.arguments import AsJson, Overrides, RecipeArgument, Trust
from neoplug.cli.screen import echo_json


def eval(
    target: Annotated[
        str, typer.Argument(help="A run's directory, or a model as recipes name them.", metavar="RUN_OR_MODEL")
    ],
    recipe: RecipeArgument,
    overrides: Overrides = None,
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a run's student, or any model.

    Computes the metrics on the recipe's held-out text, those of the recipe's teacher for comparison, and the recipe's
    probes. Writes nothing into the run.
    """
    from neoplug.runs.remeasure import recipe_for_target, remeasure

    checked = recipe_for_target(target, recipe, overrides or (), trust or ())

    from neoplug.cli import show, watch
    from neoplug.runs.progress import Silent

    if as_json:
        echo_json(remeasure(target, checked, Silent()))
        return
    with watch.log_to_stderr(), watch.progress(every=1) as progress:
        metrics = remeasure(target, checked, progress)
    if watch.is_main():
        show.print_metrics(metrics, ("student", "teacher"))
