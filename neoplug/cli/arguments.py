"""Arguments that several commands share."""

from typing import Annotated

import typer

RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe file, or the name of a shipped recipe.", metavar="RECIPE")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Changes to the recipe, checked like the file.", metavar="KEY.PATH=VALUE"),
]
Trust = Annotated[
    list[str] | None,
    typer.Option(
        help="Let this code run, and remember its content: a file, a model (folder or hub id), a folder of task "
        "files, or python:MODULE.",
        metavar="X",
        show_default=False,
    ),
]
Scale = Annotated[
    str | None,
    typer.Option(
        help="Run a published recipe at this scale: other models, data and steps, the same method.",
        metavar="tiny",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
