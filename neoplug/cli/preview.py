"""`neoplug preview`: show training rows as text, with their answer tokens marked, before a run."""

from typing import TYPE_CHECKING, Annotated

import typer

from neoplug.cli.arguments import Overrides, RecipeArgument, Trust
from neoplug.cli.screen import console, echo, heading, is_terminal
from neoplug.errors import RecipeError
from neoplug.errors.text import escaped

if TYPE_CHECKING:
    from neoplug.data.preview_text import Piece
    from neoplug.runs.preview import Preview, RowText

OPEN, CLOSE = "«", "»"
CHANGES = 20  # lines about one row


def preview(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=0, help="How many training rows to show.", metavar="K")] = 3,
    trust: Trust = None,
) -> None:
    """Show a few training rows as text.

    Answer tokens are coloured on a terminal, and «marked» elsewhere. Treatments are applied as in the first steps, and
    what they change is listed. Also shows counts of the data, dropped rows, and how the teacher's tokenizer differs
    from the student's. Loads no model. Where a run would end with an error in the data, the preview is shown first,
    then the error.
    """
    from neoplug import recipe as recipes

    checked = recipes.load(recipe, overrides or (), trust=trust or ())

    from neoplug.runs.preview import preview as make_preview

    shown = make_preview(checked, rows)
    first = 1
    for row in shown.rows:
        print_row(row, first)
        first += row.rows
    print_section("treatments", treatment_lines(shown))
    print_section("data", [f"{shown.total:,} training rows, {shown.held_out:,} held-out documents", *shown.report])
    print_section("kinds of rows", shown.kinds)
    print_section("the first row dropped for each reason", [dropped_line(*one) for one in shown.dropped])
    print_section("differences of the teacher", shown.differences)
    if shown.problems:
        with checked.marking():
            raise RecipeError(shown.problems)


def print_row(row: "RowText", number: int) -> None:
    """Print a row, and what treatments changed in it; `number` counts from 1."""
    name = f"row {number}" if row.rows == 1 else f"rows {number} to {number + row.rows - 1}"
    documents = f"{len(row.documents)} document{'s' * (len(row.documents) != 1)}"
    heading(f"{name}: {row.tokens} tokens, {row.scored} scored, {documents}{', dropped by treatments' * row.emptied}")
    for place, document in enumerate(row.documents, start=1):
        if len(row.documents) > 1:
            echo(f"-- document {place}")
        print_document(document.student)
        if document.teacher is not None:
            echo("-- the teacher reads")
            print_document(document.teacher)
    if row.changes:
        echo("-- changed by treatments")
    for line in row.changes[:CHANGES]:
        echo(f"  {escaped(line, keep='')}")
    if len(row.changes) > CHANGES:
        echo(f"  and {len(row.changes) - CHANGES} more")


def treatment_lines(shown: "Preview") -> list[str]:
    """Return which treatments changed the rows shown, and how many rows."""
    if not shown.treatments:
        return []
    changed = sum(row.rows for row in shown.rows if row.changes)
    emptied = sum(row.rows for row in shown.rows if row.emptied)
    return [
        f"{', '.join(shown.treatments)}: applied to the rows above, which are the first that the run trains",
        f"rows changed: {changed}; dropped, since no answer token is left: {emptied}",
    ]


def print_section(title: str, lines: list[str]) -> None:
    """Print a heading and lines; nothing without lines."""
    if lines:
        heading(title)
    for line in lines:
        echo(f"  {escaped(line, keep='')}")


def dropped_line(reason: str, row: int, excerpt: str) -> str:
    """Return the line about a dropped row: its number, the reason, and the beginning of the row."""
    return f"row {row}, {reason}{': ' if excerpt else ''}{excerpt}"


def print_document(document: "list[Piece]") -> None:
    """Print a document; answer tokens are green on a terminal, and in «guillemets» elsewhere."""
    document = [(escaped(text), scored) for text, scored in document]
    if not is_terminal():
        echo("".join(f"{OPEN}{text}{CLOSE}" if scored else text for text, scored in document))
        return
    from rich.text import Text

    console().print(Text.assemble(*((text, "green" if scored else "dim") for text, scored in document)))
