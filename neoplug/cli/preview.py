"""`neoplug preview`: look at the data before paying for a run."""

from typing import TYPE_CHECKING, Annotated

import typer

from neoplug.cli.arguments import Overrides, RecipeArgument
from neoplug.cli.screen import console, heading, is_terminal, printable, say

if TYPE_CHECKING:
    from neoplug.preview import Stretch

OPEN, CLOSE = "«", "»"


def preview(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=0, help="How many training rows to show.", metavar="K")] = 3,
) -> None:
    """Show a few rows as they are trained.

    Scored tokens are coloured, or «marked» off a terminal; below stands what became of the data. Loads no model.
    """
    from neoplug import recipe as recipes

    checked = recipes.load(recipe, overrides or ())

    from neoplug.preview import preview as look

    seen = look(checked, rows)
    for number, (row, (tokens, scored)) in enumerate(zip(seen.rows, seen.tokens, strict=True), start=1):
        heading(f"row {number}: {tokens} tokens, {scored} scored, {len(row)} document{'s' * (len(row) != 1)}")
        for place, document in enumerate(row, start=1):
            if len(row) > 1:
                say(f"-- document {place}")
            show([(printable(text), scored) for text, scored in document])
    heading("data")
    for line in [f"{seen.total:,} training rows, {seen.held_out:,} held-out documents", *seen.report]:
        say(f"  {line}")


def show(document: "list[Stretch]") -> None:
    """Print a document: scored text green on a terminal, «so» elsewhere."""
    if not is_terminal():
        say("".join(f"{OPEN}{text}{CLOSE}" if scored else text for text, scored in document))
        return
    from rich.text import Text

    console().print(Text.assemble(*((text, "green" if scored else "dim") for text, scored in document)))
