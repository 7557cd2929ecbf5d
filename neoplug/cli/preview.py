"""`neoplug preview`: look at the data before paying for a run."""

from typing import TYPE_CHECKING, Annotated

import typer

from neoplug.cli.arguments import Overrides, RecipeArgument
from neoplug.cli.screen import console, heading, is_terminal, printable, say
from neoplug.errors import RecipeError

if TYPE_CHECKING:
    from neoplug.data.preview_text import Piece

OPEN, CLOSE = "«", "»"


def preview(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=0, help="How many training rows to show.", metavar="K")] = 3,
) -> None:
    """Show a few rows as they are trained.

    Scored tokens are coloured, or «marked» off a terminal; below stands what became of the data, what was dropped, and
    how the teacher's tokenizer differs. Loads no model. Data that a run refuses are shown, then refused.
    """
    from neoplug import recipe as recipes

    checked = recipes.load(recipe, overrides or ())

    from neoplug.runs.preview import preview as look

    seen = look(checked, rows)
    for number, (row, (tokens, scored)) in enumerate(zip(seen.rows, seen.tokens, strict=True), start=1):
        heading(f"row {number}: {tokens} tokens, {scored} scored, {len(row)} document{'s' * (len(row) != 1)}")
        for place, document in enumerate(row, start=1):
            if len(row) > 1:
                say(f"-- document {place}")
            show(document.student)
            if document.teacher is not None:
                say("-- the teacher reads")
                show(document.teacher)
    section("data", [f"{seen.total:,} training rows, {seen.held_out:,} held-out documents", *seen.report])
    section("kinds of rows", seen.kinds)
    section("the first row dropped for each reason", [dropped(*one) for one in seen.dropped])
    section("what the teacher's tokenizer does otherwise", seen.differences)
    if seen.problems:
        with checked.marking():
            raise RecipeError(seen.problems)


def section(title: str, lines: list[str]) -> None:
    """Print lines below a heading, where there are any."""
    if lines:
        heading(title)
    for line in lines:
        say(f"  {printable(line)}")


def dropped(reason: str, row: int, excerpt: str) -> str:
    """Return a dropped row in a line."""
    return f"row {row}, {reason}{': ' if excerpt else ''}{excerpt}"


def show(document: "list[Piece]") -> None:
    """Print a document: scored text green on a terminal, «so» elsewhere."""
    document = [(printable(text), scored) for text, scored in document]
    if not is_terminal():
        say("".join(f"{OPEN}{text}{CLOSE}" if scored else text for text, scored in document))
        return
    from rich.text import Text

    console().print(Text.assemble(*((text, "green" if scored else "dim") for text, scored in document)))
