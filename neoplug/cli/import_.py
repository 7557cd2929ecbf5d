"""`neoplug import`: turn a configuration of another project into a recipe."""

from pathlib import Path
from typing import Annotated

import typer

from neoplug.cli.recipes import write
from neoplug.cli.screen import echo


def import_(
    file: Annotated[Path, typer.Argument(help="A YAML file of TRL or LLaMA-Factory.", metavar="FILE")],
    kind: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="What FILE is, where its keys do not say: trl-sft, trl-gkd, trl-distillation or llama-factory.",
            metavar="KIND",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Write the recipe to FILE, which must not exist.", metavar="FILE", show_default=False),
    ] = None,
) -> None:
    """Turn a configuration of another project into a recipe.

    Comments name the key that each value comes from, what has to be decided, and what has no counterpart.
    """
    from neoplug.recipe.imports import import_recipe

    text, remarks = import_recipe(file, kind)
    if output is None:
        echo(text.rstrip("\n"))
        return
    write(text, output)
    for remark in remarks:
        echo(f"  {remark}")


import_.__name__ = "import"  # the name of the command, which Python reserves
