"""Generates the figure and the table of docs/explanation/statistics.md from studies.json.

python benchmarks/studies_page.py           writes docs/pictures/statistics.svg, and the table into the page
python benchmarks/studies_page.py --quick   draws, and prints the table
"""

import argparse
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import numpy as np
from losses_page import replace_between, table
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from studies import SCENARIOS, Scores, stored

PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "statistics.md"
PICTURE = PAGE.parents[1] / "pictures" / "statistics.svg"
Counts = dict[str, dict[str, int]]

# Column of a table -> the count, and the count that it is a share of.
SCORES = {
    "interval contains the truth": ("covered", "intervals"),
    "pooled interval": ("pooled_covered", "models"),
    "bootstrap of seeds": ("bootstrap_covered", "bootstrap"),
    "all adjusted intervals": ("all_covered", "studies"),
    "false difference": ("false_difference", "studies"),
    "false equivalence": ("false_equivalence", "studies"),
    "smallest detectable found": ("detected", "intervals"),
}
DOCUMENTS = {
    "interval of both noises contains the truth": ("covered", "intervals"),
    "seeds alone": ("seeds_covered", "studies"),
    "documents within seeds": ("cells_covered", "studies"),
}
# Panel of the figure: title, whether its scenarios are those of scores, its columns, where they should lie, its range.
PANELS = (
    ("intervals that contain the truth, %", True, list(SCORES)[:3], 95, (70, 101)),
    ("families with a false finding, %", True, list(SCORES)[4:6], 5, (0, 16)),
    ("intervals that contain the truth, %", False, list(DOCUMENTS), 95, (30, 101)),
)
COLOURS = ("#1f77b4", "#e07000", "#2ca02c")
MARKS = ("o", "s", "^")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="write nothing")
    quick, counts = parser.parse_args().quick, stored()
    picture = draw(counts)
    if quick:
        print(tables(counts))
        return
    PICTURE.write_bytes(picture)
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(replace_between(text, "figures", tables(counts)), encoding="utf-8")


def tables(counts: Counts) -> str:
    """Return the tables of shares in percent: of scores, and of documents."""
    parts = []
    for scores, columns in ((True, SCORES), (False, DOCUMENTS)):
        rows = [
            [
                SCENARIOS[name].title,
                f"{counts[name]['studies']:,}",
                *(f"{share(counts[name], of):.1f}" for of in columns.values()),
            ]
            for name in simulated(counts, scores)
        ]
        if rows:
            parts.append(table(["scenario", "studies", *columns], rows))
    return "\n\n".join(parts)


def simulated(counts: Counts, scores: bool) -> list[str]:
    """Return the scenarios of scores, or of documents, that were simulated."""
    return [name for name, one in SCENARIOS.items() if name in counts and isinstance(one, Scores) == scores]


def share(counts: dict[str, int], of: tuple[str, str]) -> float:
    """Return a share in percent."""
    part, whole = of
    return 100 * counts.get(part, 0) / counts[whole]


def draw(counts: Counts) -> bytes:
    """Return the SVG: a panel for coverage, one for false findings, one for seeds and documents."""
    panels = [panel for panel in PANELS if simulated(counts, panel[1])]
    with mpl.rc_context({"svg.hashsalt": "neoplug", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(7.2, 3.6 if len(panels) < 3 else 6.2), layout="constrained")
        grid = figure.add_gridspec(-(-len(panels) // 2), 2)
        for at, panel in enumerate(panels):
            draw_panel(figure.add_subplot(grid[at // 2, at % 2]), counts, *panel, labels=at % 2 == 0)
        file = BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
    return file.getvalue()


def draw_panel(
    axes: Axes,
    counts: Counts,
    title: str,
    scores: bool,
    columns: list[str],
    level: float,
    limits: tuple[float, float],
    *,
    labels: bool,
) -> None:
    """Draw a row for each scenario: a mark for each column, with its 95 % interval from the number of studies."""
    names = simulated(counts, scores)
    axes.axvline(level, color="grey", linewidth=0.8)
    for at, column in enumerate(columns):
        values = np.array([share(counts[name], (SCORES | DOCUMENTS)[column]) for name in names])
        errors = 1.96 * np.sqrt(values * (100 - values) / [counts[name]["studies"] for name in names])
        places = np.arange(len(names)) + 0.2 * (at - 1)
        axes.errorbar(values, places, xerr=errors, fmt=MARKS[at], color=COLOURS[at], markersize=4, label=column)
    axes.set_yticks(range(len(names)), [SCENARIOS[name].title if labels else "" for name in names])
    axes.set_title(title, fontsize=8)
    axes.set(xlim=limits, ylim=(len(names) - 0.5, -0.5))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.1))


if __name__ == "__main__":
    main()
