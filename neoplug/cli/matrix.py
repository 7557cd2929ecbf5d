"""`neoplug plugins --matrix`: print the measured compatibility of adapters, quantisations and model families."""

import textwrap
from dataclasses import asdict, replace
from pathlib import Path

from neoplug.cli.screen import echo, echo_json, heading, table
from neoplug.errors import UsageError
from neoplug.registry import find, installed
from neoplug.registry.compatibility import Matrix, matrices, matrix_for, measured_on, reasons, summary


def print_matrices(name: str | None, as_json: bool) -> None:
    """Print the compatibility matrices of the installed packages, or the row of one adapter.

    Raises UsageError for an adapter without a row.
    """
    found = list(matrices(installed())) if name is None else [matrix_of(name)]
    if as_json:
        echo_json([asdict(each) | {"differing": each.differing()} for each in found])
        return
    for each in found:
        print_matrix(each)


def matrix_of(name: str) -> Matrix:
    """Return the matrix restricted to the row of one adapter."""
    entry = find(name, Path.cwd())
    matrix = matrix_for(entry)
    if matrix is None:
        known = sorted(adapter for each in matrices(installed()) for adapter in each.rows)
        raise UsageError(f"there are no measurements of `{name}`\nfix: one of {', '.join(known)}")
    return replace(matrix, rows={entry.name: matrix.rows[entry.name]})


def print_matrix(matrix: Matrix) -> None:
    """Print one matrix: versions, a line for each adapter, and the reasons of failures."""
    echo(f"{measured_on(matrix)}; adapters without options")
    for package, (measured, here) in matrix.differing().items():
        echo(f"here {package} is {here or 'not installed'}, not {measured}: the results may differ")
    echo(f"families: {', '.join(matrix.families)}")
    heading("works on")
    rows = [[name, *(summary(matrix, name, loading) for loading in matrix.loadings)] for name in matrix.rows]
    table(rows, header=("adapter", *matrix.loadings))
    heading("why not")
    lines = [f"{name} {line}" for name in matrix.rows for line in reasons(matrix, name)]
    for line in lines or ["nothing fails"]:
        echo(textwrap.indent(line, "  "))
