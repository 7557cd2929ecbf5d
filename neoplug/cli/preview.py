"""`neoplug preview`: show training rows as text, with their answer tokens marked, before a run."""

from typing import TYPE_CHECKING, Annotated

import typer

from neoplug.cli.arguments import Overrides, RecipeArgument
from neoplug.cli.screen import console, echo, heading, is_terminal, printable
from neoplug.errors import RecipeError

if TYPE_CHECKING:
    from neoplug.data.preview_text import Piece

OPEN, CLOSE = "«", "»"


def preview(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=0, help="How many training rows to show.", metavar="K")] = 3,
) -> None:
    """Show a few training rows as text.

    Answer tokens are coloured on a terminal, and «marked» elsewhere. Also shows counts of the data, dropped rows, and
    how the teacher's tokenizer differs from the student's. Loads no model. Where a run would end with an error in the
    data, the preview is shown first, then the error.
    """
    from neoplug import recipe as recipes

    checked = recipes.load(recipe, overrides or ())

    from neoplug.runs.preview import preview as make_preview

    shown = make_preview(checked, rows)
    for number, (row, (tokens, scored)) in enumerate(zip(shown.rows, shown.tokens, strict=True), start=1):
        heading(f"row {number}: {tokens} tokens, {scored} scored, {len(row)} document{'s' * (len(row) != 1)}")
        for place, document in enumerate(row, start=1):
            if len(row) > 1:
                echo(f"-- document {place}")
            print_document(document.student)
            if document.teacher is not None:
                echo("-- the teacher reads")
                print_document(document.teacher)
    print_section("data", [f"{shown.total:,} training rows, {shown.held_out:,} held-out documents", *shown.report])
    print_section("kinds of rows", shown.kinds)
    print_section("the first row dropped for each reason", [dropped_line(*one) for one in shown.dropped])
    print_section("differences of the teacher's tokenizer", shown.differences)
    if shown.problems:
        with checked.marking():
            raise RecipeError(shown.problems)


def print_section(title: str, lines: list[str]) -> None:
    """Print a heading and lines; nothing without lines."""
    if lines:
        heading(title)
    for line in lines:
        echo(f"  {printable(line)}")


def dropped_line(reason: str, row: int, excerpt: str) -> str:
    """Return the line about a dropped row: its number, the reason, and the beginning of the row."""
    return f"row {row}, {reason}{': ' if excerpt else ''}{excerpt}"


def print_document(document: "list[Piece]") -> None:
    """Print a document; answer tokens are green on a terminal, and in «guillemets» elsewhere."""
    document = [(printable(text), scored) for text, scored in document]
    if not is_terminal():
        echo("".join(f"{OPEN}{text}{CLOSE}" if scored else text for text, scored in document))
        return
    from rich.text import Text

    console().print(Text.assemble(*((text, "green" if scored else "dim") for text, scored in document)))
