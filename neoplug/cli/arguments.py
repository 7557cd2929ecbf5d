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
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
