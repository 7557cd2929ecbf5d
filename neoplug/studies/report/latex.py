"""The tables of a study for LaTeX, with booktabs and longtable; all text is escaped."""

from collections.abc import Sequence

from neoplug.errors.text import escaped, redacted
from neoplug.studies.report.tables import Cell, Row, Table

HEAD = "% Tables of a neoplug study. They need \\usepackage{booktabs,longtable} and \\usepackage[T1]{fontenc}.\n"
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "\u00a0": "~",
    "\u202f": r"\,",
    "\u2212": "$-$",
    "\u2013": "--",
    "\u00b1": r"$\pm$",
    "\u00d7": r"$\times$",
    "\u2265": r"$\geq$",
    "\u03c4": r"$\tau$",
    "\u2019": "'",
    "\u201c": "``",
    "\u201d": "''",
    "[": "{[}",  # after a line break, a bracket begins an option
    "]": "{]}",
}
_SUPERSCRIPTS = {letter: f"$^{{{plain}}}$" for letter, plain in zip("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789", strict=True)}


def in_latex(text: str) -> str:
    """Return text from outside as LaTeX: no letter of it is a command."""
    letters = _SPECIAL | _SUPERSCRIPTS
    return "".join(letters.get(letter, letter) for letter in escaped(redacted(text), keep=""))


def latex_table(table: Table, label: str) -> str:
    """Return a table that may be longer than a page. `label`: for \\ref."""
    align = "".join("r" if column.numeric else "l" for column in table.columns)
    head = _line([Cell(column.title) for column in table.columns])
    return "\n".join(
        [
            rf"\begin{{longtable}}{{@{{}}{align}@{{}}}}",
            rf"\caption{{{in_latex(table.caption)}}}\label{{tab:{label}}}\\",
            r"\toprule",
            head,
            r"\midrule",
            r"\endfirsthead",
            r"\toprule",
            head,
            r"\midrule",
            r"\endhead",
            *_body(table.rows),
            r"\bottomrule",
            r"\end{longtable}",
            "",
        ]
    )


def _body(rows: Sequence[Row]) -> list[str]:
    """Return the lines of the rows; references follow after a rule."""
    fixed = [_line(row.cells) for row in rows if row.fixed]
    return [*(_line(row.cells) for row in rows if not row.fixed), *([r"\midrule"] if fixed else []), *fixed]


def _line(cells: Sequence[Cell]) -> str:
    return " & ".join(in_latex(cell.text) for cell in cells) + r" \\"
