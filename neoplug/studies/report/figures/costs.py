"""Costs: the quality of each arm against its trainable parameters, seconds and memory, with the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from neoplug.studies.report import numbers
from neoplug.studies.report.figures.canvas import INK, MUTED, SERIES, WIDTH, Figure, drawing, finished, text
from neoplug.studies.report.material import Material, measure_of

COSTS = {
    "trainable_parameters": "trainable parameters",
    "seconds": "seconds a run",
    "peak_memory_bytes": "peak memory, MB",
}
LABELLED = 8  # arms of a front that have their names in the figure


def cost_table(material: Material) -> pd.DataFrame:
    """Return the costs and the mean score of each arm with completed test runs: medians over its runs."""
    costs = material.completed.reindex(columns=["arm", *COSTS]).groupby("arm").median(numeric_only=False)
    scores = {line.arm: line.mean for line in material.summary.arms if line.metric == material.metric}
    table = costs.apply(pd.to_numeric, errors="coerce").assign(score=pd.Series(scores, dtype=float))
    return table.loc[[arm.name for arm in material.study.arms if arm.name in table.index]].astype(float)


def front(costs: Sequence[float], losses: Sequence[float]) -> list[int]:
    """Return the places that no other place beats: none is as good in both and better in one. By ascending cost."""
    order = sorted(range(len(costs)), key=lambda at: (costs[at], losses[at]))
    best = float("inf")
    found: list[int] = []
    for at in order:
        if losses[at] < best or (found and (costs[at], losses[at]) == (costs[found[-1]], losses[found[-1]])):
            found.append(at)
            best = losses[at]
    return found


def costs_figure(material: Material, name: str) -> Figure | None:
    """Return a panel for each cost that was measured."""
    table, measure = cost_table(material), measure_of(material.metric)
    known = [cost for cost in COSTS if (table[cost].notna() & table["score"].notna() & (table[cost] > 0)).any()]
    if not known or measure.greater_is_better is None:
        return None
    figure, grid = drawing(210 * len(known) + 20, rows=len(known), width=WIDTH)
    for axes, cost in zip(grid, known, strict=True):
        points = table[[cost, "score"]].dropna()
        x = points[cost].to_numpy() / (1e6 if cost == "peak_memory_bytes" else 1)
        y = points["score"].to_numpy()
        on_front = front(list(x), list(-y if measure.greater_is_better else y))
        axes.plot(x, y, "o", color=MUTED, markersize=5, markeredgewidth=0, alpha=0.7)
        axes.step(x[on_front], y[on_front], where="post", color=SERIES[0], linewidth=1.2)
        axes.plot(x[on_front], y[on_front], "D", color=SERIES[0], markersize=6, markeredgewidth=0)
        for number, at in enumerate(on_front[:LABELLED]):
            offset = (7, -14 if number % 2 else 5)  # so that neighbours do not overlap
            axes.annotate(
                text(points.index[at]), (x[at], y[at]), offset, textcoords="offset points", fontsize=11, color=INK
            )
        axes.margins(x=0.12, y=0.2)
        axes.grid()
        axes.set_axisbelow(True)
        axes.set_xlabel(COSTS[cost])
        axes.set_ylabel(measure.title)
        if x.max() > 30 * x.min():
            axes.set_xscale("log")
        axes.xaxis.set_major_formatter(numbers.tick)
    label = f"Mean {measure.title} of the arms against {', '.join(COSTS[cost].partition(',')[0] for cost in known)}."
    caption = (
        f"Mean {measure.title} on the test half against medians of costs. Diamonds are the Pareto front: no other arm "
        "is at once as cheap and as good. Seconds depend on the machine and on what else it did."
    )
    return finished(figure, name, label, caption)
