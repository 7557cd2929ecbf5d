"""`neoplug plugins --matrix`: which adapter works with which loading on which family, as it was measured."""

import json
import textwrap
from dataclasses import asdict, replace
from pathlib import Path

from neoplug.cli.screen import heading, say, table
from neoplug.errors import UsageError
from neoplug.registry import find, installed
from neoplug.registry.compatibility import Matrix, matrices, matrix_for, measured_on, reasons, summary


def show_matrix(name: str | None, as_json: bool) -> None:
    """Print what the installed packages say of their adapters, or of one.

    Raises UsageError where nobody says anything of it.
    """
    found = list(matrices(installed())) if name is None else [only(name)]
    if as_json:
        say(json.dumps([asdict(each) | {"differing": each.differing()} for each in found], indent=2))
        return
    for each in found:
        show(each)


def only(name: str) -> Matrix:
    """Return the matrix with the row of one adapter."""
    entry = find(name, Path.cwd())
    matrix = matrix_for(entry)
    if matrix is None:
        known = sorted(adapter for each in matrices(installed()) for adapter in each.rows)
        raise UsageError(f"nothing was measured of `{name}`\nfix: one of {', '.join(known)}")
    return replace(matrix, rows={entry.name: matrix.rows[entry.name]})


def show(matrix: Matrix) -> None:
    """Print one matrix: what it was measured on, a line an adapter, and why not."""
    say(f"{measured_on(matrix)}; adapters without options")
    for package, (then, here) in matrix.differing().items():
        say(f"here {package} is {here or 'not installed'}, not {then}: what is shown may have changed")
    say(f"families: {', '.join(matrix.families)}")
    heading("works on")
    rows = [[name, *(summary(matrix, name, loading) for loading in matrix.loadings)] for name in matrix.rows]
    table(rows, header=("adapter", *matrix.loadings))
    heading("why not")
    lines = [f"{name} {line}" for name in matrix.rows for line in reasons(matrix, name)]
    for line in lines or ["nothing fails"]:
        say(textwrap.indent(line, "  "))
