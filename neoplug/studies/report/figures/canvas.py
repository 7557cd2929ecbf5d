"""Canvas: matplotlib set up for the page, and its SVG made a part of it.

One point of matplotlib is one pixel of the page. Colours are variables of the style sheet: in matplotlib each is a
number that no other colour has, and in the SVG the variable replaces it, so that a figure follows the page into dark
mode.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from neoplug.errors.text import escaped, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

WIDTH = 736  # pixels
ROW = 19  # pixels of a row with a label
LONGEST_LABEL = 40  # characters
_NAMES = ("ink", "muted", "rule", "paper", "better", "worse", "same", "heat", *(f"series-{n}" for n in range(8)))
_NUMBERS = {name: f"#0102{number:02x}" for number, name in enumerate(_NAMES, 1)}
INK, MUTED, RULE, PAPER, BETTER, WORSE, SAME, HEAT = (_NUMBERS[name] for name in _NAMES[:8])
SERIES = tuple(_NUMBERS[name] for name in _NAMES[8:])
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")  # each series has one, so that colour is not needed
DASHES: tuple[str | tuple[int, tuple[int, ...]], ...] = (
    "solid", (0, (5, 2)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (2, 2)), (0, (6, 1))
)  # fmt: skip
_STYLE: Mapping[str, object] = {
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 12,
    "xtick.labelsize": 11,
    "ytick.labelsize": 12,
    "legend.fontsize": 11,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "text.parse_math": False,  # a name with two dollar signs is no formula
    "axes.unicode_minus": True,
    "axes.formatter.use_mathtext": False,
    "axes.formatter.useoffset": False,
    "figure.dpi": 72,
    "figure.constrained_layout.use": True,
}
_ID = re.compile(r'\bid="([^"]+)"')
_REFERENCE = re.compile(r'(xlink:href="#|url\(#)([^")]+)')
_COLOUR = re.compile(r"#0102[0-9a-f]{2}")


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    label    what it shows, for readers that do not see it
    caption  what a reader has to know to read it
    """

    svg: Markup
    label: str
    caption: str
    width: int = WIDTH


def text(name: object) -> str:
    """Return a name from outside as a label."""
    return shortened(escaped(str(name), keep=""), LONGEST_LABEL)


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the style of the report while this context lasts; fonts that lack a letter are no concern of it."""
    import matplotlib as mpl

    logger = logging.getLogger("matplotlib")
    level = logger.level
    with mpl.rc_context({"backend": "svg", **_STYLE}), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def drawing(
    height: float, columns: int = 1, rows: int = 1, width: float = WIDTH, *, sharey: bool = False
) -> tuple[Drawing, list[Axes]]:
    """Return a drawing of this size in pixels with a grid of axes, in reading order."""
    from matplotlib.figure import Figure as Drawing

    figure = Drawing(figsize=(width / 72, height / 72), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=sharey)
    return figure, list(grid.flat)


def rows_of(axes: Axes, labels: Sequence[str], groups: Sequence[str] = ()) -> None:
    """Give axes a row for each label, from top to bottom; groups of rows are separated by lines."""
    count = len(labels)
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_yticks(range(count), [text(label) for label in labels])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    for at in range(1, len(groups)):
        if groups[at] != groups[at - 1]:
            axes.axhline(at - 0.5, color=RULE, linewidth=0.8, zorder=0.5)


def finished(figure: Drawing, name: str, label: str, caption: str) -> Figure:
    """Return a drawing as a figure of the page. `name`: no other figure has it; identifiers in it begin with it."""
    buffer = io.StringIO()
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Figure(Markup(_in_page(buffer.getvalue(), name)), label, caption, round(72 * figure.get_figwidth()))


def _in_page(svg: str, name: str) -> str:
    """Return the SVG without what a page has no use for, with its own identifiers and the page's colours."""
    svg = svg[svg.index("<svg") :]
    opening, rest = svg.split(">", 1)
    view = re.search(r'viewBox="([^"]+)"', opening)
    rest = re.sub(r"<metadata>.*?</metadata>\s*|<style[^>]*>.*?</style>\s*|<!--.*?-->\s*", "", rest, flags=re.DOTALL)
    used = {match[2] for match in _REFERENCE.finditer(rest)}
    rest = _ID.sub(lambda match: f'id="{name}-{match[1]}"' if match[1] in used else "", rest)
    rest = _REFERENCE.sub(lambda match: f"{match[1]}{name}-{match[2]}", rest)
    variables = {number: f"var(--{known})" for known, number in _NUMBERS.items()}
    rest = _COLOUR.sub(lambda match: variables[match[0]], rest)
    return f'<svg viewBox="{view[1] if view else ""}" aria-hidden="true" focusable="false">{rest}'
