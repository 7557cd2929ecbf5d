"""`neoplug report`: write the report of a study as a self-contained page, with its tables for LaTeX."""

from pathlib import Path
from typing import Annotated

import typer

from neoplug.cli.screen import echo


def report(
    study: Annotated[Path, typer.Argument(help="The study's directory.", metavar="DIR")],
    output: Annotated[
        Path | None,
        typer.Option(
            help="The page; DIR/report.html by default. tables.tex is written next to it.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write the report of a study: one HTML page that needs no network, and tables for LaTeX.

    It shows what the study's files have; an unfinished study has a provisional report.
    """
    from neoplug.studies.report.page import write_report

    for file in write_report(study, output):
        echo(str(file))
