"""Maps: an axis by an axis with the number of seeds in each cell, and the ranks of arms at each seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from neoplug.studies.report import numbers
from neoplug.studies.report.figures.canvas import HEAT, INK, WIDTH, Figure, drawing, finished, text
from neoplug.studies.report.material import Material, measure_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from neoplug.studies.study import Study

PANELS = 8  # at most: combinations of the axes that are neither rows nor columns
MOST_COLUMNS = 12
STRONGEST = 0.5  # opacity of the best cell: text in front of it keeps its contrast


@dataclass(frozen=True)
class Plane:
    """How arms are placed in figures: `rows` and `columns` are axes, the levels of the others name a panel."""

    rows: str
    columns: str
    others: tuple[str, ...]


def plane_of(study: Study) -> Plane | None:
    """Return the plane of a study: adapters by losses where it has both, else its first two axes that vary."""
    varied = [axis for axis, levels in study.axes.items() if len(levels) > 1]
    if len(varied) < 2:
        return None
    columns = "loss" if "loss" in varied else varied[1]
    rows = "adapter" if "adapter" in varied else next(axis for axis in varied if axis != columns)
    return Plane(rows, columns, tuple(axis for axis in varied if axis not in (rows, columns)))


def plane_figure(material: Material, metric: str, name: str) -> Figure | None:
    """Return the map of a metric: the mean and the number of seeds of each arm, darker where it is better."""
    study, plane = material.study, plane_of(material.study)
    found = {line.arm: line for line in material.summary.arms if line.metric == metric and line.mean is not None}
    if plane is None or not found or len(study.axes[plane.columns]) > MOST_COLUMNS:
        return None
    panels: dict[str, list[tuple[int, int, str]]] = {}
    for arm in study.arms:
        title = ", ".join(f"{axis} {arm.levels[axis]}" for axis in plane.others)
        place = [study.axes[axis].index(arm.levels[axis]) for axis in (plane.rows, plane.columns)]
        panels.setdefault(title, []).append((place[0], place[1], arm.name))
    if len(panels) > PANELS:
        return None
    rows, columns = study.axes[plane.rows], study.axes[plane.columns]
    measure = measure_of(metric)
    means = [line.mean for line in found.values() if line.mean is not None]
    decimals = numbers.decimals_for(line.sd for line in found.values())
    height = len(panels) * (34 * len(rows) + 64)
    figure, grid = drawing(height, rows=len(panels), width=min(WIDTH, 150 + 96 * len(columns)))
    for axes, (title, arms) in zip(grid, panels.items(), strict=True):
        _frame(axes, rows, columns, title)
        for row, column, arm_name in arms:
            line = found.get(arm_name)
            if line is None or line.mean is None:
                _cell(axes, row, column, 0, numbers.NONE, "no run")
                continue
            share = _share(line.mean, means, measure.greater_is_better)
            _cell(axes, row, column, share, numbers.fixed(line.mean, decimals), f"n = {line.n}")
    stronger = "" if measure.greater_is_better is None else "; the stronger the colour, the better"
    label = f"Map of mean {measure.title}, {plane.rows} by {plane.columns}; the table of scores has its numbers."
    caption = f"Mean {measure.title} over test seeds and their number n, {plane.rows} by {plane.columns}{stronger}. "
    return finished(figure, name, label, caption + "An empty place is an arm that the study excludes.")


def ranks_figure(material: Material, metric: str, name: str) -> Figure | None:
    """Return the ranks of all arms at each seed, best mean first."""
    scores = material.scores(metric).dropna(how="all").dropna(axis="columns", how="all")
    measure = measure_of(metric)
    if len(scores) < 2 or len(scores.columns) < 2 or measure.greater_is_better is None:
        return None
    better = measure.greater_is_better
    ranks = scores.rank(axis=1, ascending=not better)
    order = list(scores.mean().sort_values(ascending=not better, kind="stable").index)
    figure, (axes,) = drawing(21 * len(order) + 44, width=min(WIDTH, 220 + 46 * len(ranks)))
    _frame(axes, order, [str(seed) for seed in ranks.index], "", "seed")
    for row, arm in enumerate(order):
        for column, rank in enumerate(ranks[arm]):
            if pd.notna(rank):
                share = 1 - (rank - 1) / max(1, len(order) - 1)
                _cell(axes, row, column, share, f"{rank:g}")
            else:
                _cell(axes, row, column, 0, numbers.NONE)
    label = f"Ranks of the arms by {measure.title} at each seed."
    caption = (
        f"Rank by {measure.title} at each seed (1 is best), arms in the order of their means. Equal rows are stable."
    )
    return finished(figure, name, label, caption)


def _share(value: float, values: Sequence[float], greater_is_better: bool | None) -> float:
    """Return where a value lies between the worst (0) and the best (1)."""
    low, high = min(values), max(values)
    share = (value - low) / (high - low) if high > low else 0.5
    return share if greater_is_better else 1 - share


def _frame(axes: Axes, rows: Sequence[str], columns: Sequence[str], title: str, above: str = "") -> None:
    """Give axes labels for rows and columns, and no lines."""
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [text(row) for row in rows])
    axes.set_xticks(range(len(columns)), [text(column) for column in columns])
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=12, labelleft=True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if above:
        axes.xaxis.set_label_position("top")
        axes.set_xlabel(above)
    if title:
        axes.set_title(text(title))


def _cell(axes: Axes, row: int, column: int, share: float, value: str, below: str = "") -> None:
    """Draw a cell."""
    from matplotlib.patches import Rectangle

    size = 0.94, 0.9
    corner = column - size[0] / 2, row - size[1] / 2
    axes.add_patch(Rectangle(corner, *size, color=HEAT, alpha=0.04 + (STRONGEST - 0.04) * share, linewidth=0))
    axes.text(column, row - (0.16 if below else 0), value, ha="center", va="center", fontsize=12, color=INK)
    if below:
        axes.text(column, row + 0.24, below, ha="center", va="center", fontsize=10, color=INK)
