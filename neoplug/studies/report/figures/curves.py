"""Curves: the score against each searched key, and the training loss over tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neoplug.studies.report import numbers
from neoplug.studies.report.figures.canvas import DASHES, MARKERS, MUTED, SERIES, WIDTH, Figure, drawing, finished, text
from neoplug.studies.report.figures.maps import plane_of
from neoplug.studies.report.material import Material, measure_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

    from neoplug.studies.study import Searched

POINTS = 120  # of a learning curve
PANEL = 200  # pixels of height
PANELS = 24  # at most; more arms than these hold are in the tables alone
MOST_TICKS = 4  # of a searched key
MOST_LINES = len(SERIES)  # of a panel that are told apart
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # tokens, loss
Panels = Mapping[str, Sequence[tuple[str, str]]]  # title -> (label, arm) of each line


def rates_figure(material: Material, key: str, searched: Searched, name: str) -> Figure | None:
    """Return the score on the validation half against a searched key, for each arm."""
    measure, column = measure_of(material.metric), f"validation_{material.metric}"
    table = material.searches
    if searched.column not in table or column not in table:
        return None
    table = table[(table["status"] == "completed") & table[column].notna()]
    if table.empty:
        return None
    panels = _panels(material)
    figure, grid = _grid(panels, sharey=True)
    for axes, lines in zip(grid, panels.values(), strict=False):
        _searched_axis(axes, sorted(table[searched.column].unique()))
        for at, (label, arm) in enumerate(lines):
            of_arm = table[table["arm"] == arm]
            others = [one.column for other, one in material.study.search.keys.items() if other != key]
            means = of_arm.groupby([*others, searched.column])[column].mean().reset_index()
            best = means.groupby(searched.column)[column].agg("max" if measure.greater_is_better else "min")
            style = _style(at, len(lines))
            axes.plot(best.index, best.to_numpy(), label=text(label), markersize=5.5, **style)
            dots = {"marker": ".", "markersize": 4, "markeredgewidth": 0, "alpha": 0.55, "color": style["color"]}
            axes.plot(of_arm[searched.column], of_arm[column], linestyle="none", zorder=1.5, **dots)
    _legends(figure, grid, panels, key, f"{measure.title}, {measure.unit}".removesuffix(", "))
    several = ", at the best values of the other searched keys" if len(material.study.search.keys) > 1 else ""
    label = f"{measure.title} on the validation half against {key}, a line for each arm."
    caption = (
        f"Mean {measure.title} on the validation half against {key}{several}; small dots are the tuning seeds. Runs "
        "that did not complete have no dot."
    )
    return finished(figure, name, label, caption)


def learning_figure(material: Material, name: str) -> Figure | None:
    """Return the training loss over tokens of the test runs whose curves are known: median and quartiles over seeds."""
    curves = learning_curves(material)
    if not curves:
        return None
    panels = {
        title: known
        for title, lines in _panels(material).items()
        if (known := [(label, arm) for label, arm in lines if arm in curves])
    }
    figure, grid = _grid(panels, sharey=False)
    for axes, lines in zip(grid, panels.values(), strict=False):
        axes.xaxis.set_major_formatter(numbers.tick)
        axes.locator_params(axis="x", nbins=4)
        for at, (label, arm) in enumerate(lines):
            style = _style(at, len(lines)) | {"marker": ""}
            tokens, low, middle, high = quartiles(curves[arm])
            axes.plot(tokens, middle, label=text(label), **style)
            if len(curves[arm]) > 1:
                axes.fill_between(tokens, low, high, color=style["color"], alpha=0.16, linewidth=0)
    _legends(figure, grid, panels, "tokens trained on", "training loss, nats a token")
    runs = [len(found) for found in curves.values()]
    few = f"{min(runs)}" if min(runs) == max(runs) else f"{min(runs)} to {max(runs)}"
    label = "Training loss over tokens, a line for each arm."
    caption = (
        f"Median and quartiles of the training loss over the runs of an arm whose curves were kept ({few} an arm). The "
        "loss is each arm's own objective: compare within a panel, never between objectives."
    )
    return finished(figure, name, label, caption)


def learning_curves(material: Material) -> dict[str, list[Curve]]:
    """Return arm -> the curves of its completed test runs: from the ledger, else from run folders that were kept."""
    stored = {row.get("id"): row["curve"] for row in material.ledger() if isinstance(row.get("curve"), dict)}
    found: dict[str, list[Curve]] = {}
    for run in material.completed.itertuples():
        file = material.folder / run.run / "metrics.jsonl" if run.run else None
        curve = _curve(stored.get(run.id)) or (_curve(_read(file)) if file and file.is_file() else None)
        if curve:
            found.setdefault(run.arm, []).append(curve)
    return found


def _read(file: Path) -> dict[str, list[Any]]:
    """Return the curve in metrics.jsonl: tokens so far, and the loss of each step."""
    lines = list(_lines(file))
    return {
        "tokens": list(np.cumsum([line.get("tokens") or 0 for line in lines])),
        "loss": [line.get("loss") for line in lines],
    }


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    for text_line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            line = json.loads(text_line)
        except ValueError:  # the last line of a killed process
            continue
        if isinstance(line, dict):
            yield line


def _curve(columns: Mapping[str, Any] | None) -> Curve | None:
    """Return tokens and losses as arrays; None where there are fewer than two points."""
    if not columns:
        return None
    frame = pd.DataFrame({name: pd.Series(columns.get(name, ()), dtype=object) for name in ("tokens", "loss")})
    frame = frame.apply(pd.to_numeric, errors="coerce").replace([np.inf, -np.inf], np.nan).dropna()
    return (frame["tokens"].to_numpy(float), frame["loss"].to_numpy(float)) if len(frame) > 1 else None


def quartiles(curves: Sequence[Curve]) -> tuple[NDArray[np.float64], ...]:
    """Return tokens, and the quartiles of the curves there, as far as all of them reach."""
    thinned = [_thinned(*curve) for curve in curves]
    first, last = max(tokens[0] for tokens, _ in thinned), min(tokens[-1] for tokens, _ in thinned)
    grid = np.linspace(first, last, max(len(tokens) for tokens, _ in thinned))
    values = np.stack([np.interp(grid, tokens, loss) for tokens, loss in thinned])
    return grid, *np.quantile(values, (0.25, 0.5, 0.75), axis=0)


def _thinned(tokens: NDArray[np.float64], loss: NDArray[np.float64]) -> Curve:
    """Return a curve with POINTS points at most: means over neighbouring steps."""
    parts = min(POINTS, len(tokens))
    means = [np.array([part.mean() for part in np.array_split(values, parts)]) for values in (tokens, loss)]
    return means[0], means[1]


def _panels(material: Material) -> Panels:
    """Return the lines of each panel: a panel for each level of the columns' axis, lines for the other axes."""
    study, plane = material.study, plane_of(material.study)
    panels: dict[str, list[tuple[str, str]]] = {}
    for arm in study.arms:
        title = "" if plane is None else f"{plane.columns} {arm.levels[plane.columns]}"
        rest = [level for axis, level in arm.levels.items() if plane is None or axis != plane.columns]
        panels.setdefault(title, []).append(("/".join(rest), arm.name))
    return dict(list(panels.items())[:PANELS])


def _grid(panels: Panels, *, sharey: bool) -> tuple[Drawing, list[Axes]]:
    """Return a drawing with a panel for each of `panels`; `sharey`: they have the same scale."""
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = drawing(rows * PANEL + 70, columns, rows, WIDTH if columns > 1 else 480, sharey=sharey)
    for axes in grid:
        axes.grid(axis="y")
        axes.set_axisbelow(True)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    return figure, grid


def _searched_axis(axes: Axes, values: Sequence[float]) -> None:
    """Give an axis the tried values as ticks, every second one where there are many."""
    axes.set_xscale("log" if values[0] > 0 else "linear")
    axes.minorticks_off()
    shown = values[:: -(-len(values) // MOST_TICKS)]
    axes.set_xticks(shown, [numbers.plain(value) for value in shown])


def _style(at: int, count: int) -> dict[str, Any]:
    """Return the style of a line; more lines than there are colours are all grey."""
    if count > MOST_LINES:
        return {"color": MUTED, "linewidth": 0.8, "marker": "", "linestyle": "solid"}
    return {"color": SERIES[at], "marker": MARKERS[at], "linestyle": DASHES[at], "linewidth": 1.6}


def _legends(figure: Drawing, grid: Sequence[Axes], panels: Panels, below: str, beside: str) -> None:
    """Add titles, labels, and one legend for all panels."""
    for axes, title in zip(grid, panels, strict=False):
        axes.set_title(text(title))
    figure.supxlabel(text(below), fontsize=12)
    figure.supylabel(text(beside), fontsize=12)
    entries: dict[str, Any] = {}
    for axes in grid:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if 1 < len(entries) <= MOST_LINES:
        figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=4, handlelength=3.2)
    elif len(entries) > MOST_LINES:
        figure.text(0.5, 1, f"{numbers.of(len(entries), 'line')}, not told apart", ha="center", va="top", fontsize=11)
