"""Forest plots: the scores of all arms, and the paired differences of planned comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from neoplug.studies.report import numbers
from neoplug.studies.report.figures.canvas import (
    BETTER,
    INK,
    MUTED,
    ROW,
    SAME,
    WORSE,
    Figure,
    drawing,
    finished,
    rows_of,
)
from neoplug.studies.report.material import Material, measure_of
from neoplug.studies.report.verdicts import Verdict, verdict_of
from neoplug.studies.summary_schema import ContrastResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAR = 1.0  # a reference line farther from the scores than this multiple of their range is stated at the edge
DASHES: dict[str, Any] = {"teacher": (0, (4, 2)), "untrained": (0, (1, 1.5))}  # of the references
DOT: dict[str, Any] = {"marker": "o", "linestyle": "none", "markersize": 4.2, "markeredgewidth": 0, "alpha": 0.5}
COLOURS = {Verdict.better: BETTER, Verdict.worse: WORSE, Verdict.same: SAME}
SHAPES = {Verdict.better: "D", Verdict.worse: "v", Verdict.same: "s"}


def scores_figure(material: Material, metric: str, name: str) -> Figure | None:
    """Return the forest plot of a metric: a dot for each seed, the mean and its interval, the references."""
    scores = material.scores(metric)
    if not scores.notna().any(axis=None):
        return None
    arms = {line.arm: line for line in material.summary.arms if line.metric == metric}
    names = list(scores.columns)
    figure, (axes,) = drawing(ROW * len(names) + 96)
    rows_of(axes, names, [arm.partition("/")[0] for arm in names])
    _dots(axes, scores)
    for at, arm in enumerate(names):
        line = arms.get(arm)
        if line and line.mean is not None:
            if line.interval:
                axes.hlines(at, *line.interval, color=INK, linewidth=1.6)
            axes.plot(line.mean, at, marker="D", color=INK, markersize=5, markeredgewidth=0)
    measure = measure_of(metric)
    ends = [end for line in arms.values() for end in (line.interval or ())]
    _references(axes, material, metric, [*scores.stack().dropna(), *ends])
    better = {None: "", True: " (greater is better)", False: " (smaller is better)"}[measure.greater_is_better]
    axes.set_xlabel(f"{measure.title}{f', {measure.unit}' if measure.unit else ''}{better}")
    label = f"Forest plot of {measure.title} by arm; the table below has its numbers."
    caption = (
        "Each dot is the run of one test seed, the diamond their mean, the line its 95 % t interval over seeds. These "
        "intervals describe single arms; what seeds share cancels only in the paired differences."
    )
    return finished(figure, name, label, caption)


def differences_figure(material: Material, lines: Sequence[ContrastResult], name: str) -> Figure | None:
    """Return the paired differences of the comparisons of one family and metric."""
    metric = lines[0].metric
    known = [line for line in lines if line.estimate is not None]
    if not known:
        return None
    scores, measure = material.scores(metric), measure_of(metric)
    names = [line.arm for line in lines]
    figure, (axes,) = drawing(ROW * len(names) + 84)
    rows_of(axes, names, [arm.partition("/")[0] for arm in names])
    if margin := lines[0].margin:
        axes.axvspan(-margin, margin, color=MUTED, alpha=0.14, linewidth=0, zorder=0)
    axes.axvline(0, color=INK, linewidth=0.9, zorder=1)
    _dots(axes, pd.DataFrame({at: scores[line.arm] - scores[line.control] for at, line in enumerate(lines)}))
    for at, line in enumerate(lines):
        if line.estimate is None:
            continue
        verdict = verdict_of(line)
        colour = COLOURS.get(verdict, INK)
        if line.interval_adjusted:
            axes.hlines(at, *line.interval_adjusted, color=colour, linewidth=0.9)
        if line.interval:
            axes.hlines(at, *line.interval, color=colour, linewidth=2.6)
        shape = SHAPES.get(verdict, "o")
        face = "none" if verdict is Verdict.undecided else colour
        axes.plot(line.estimate, at, marker=shape, color=colour, markerfacecolor=face, markersize=6.5)
    unit = f", {measure.unit}" if measure.unit else ""
    side = {None: "", True: "  (right: better)", False: "  (left: better)"}[measure.greater_is_better]
    axes.set_xlabel(f"difference in {measure.title}, arm minus control{unit}{side}")
    label = f"Paired differences in {measure.title} to the control; the table below has their numbers."
    return finished(figure, name, label, _differences_caption(margin, measure.unit))


def _differences_caption(margin: float | None, unit: str) -> str:
    band = f" The grey band is the margin of ±{numbers.plain(margin)}{unit and ' ' + unit}." if margin else ""
    return (
        "Each dot is the difference at one seed. Thick line: 95 % paired t interval; thin line: simultaneous interval "
        "of the family. Filled diamond: better by the adjusted test; triangle: worse; square: equivalent to no "
        f"difference; open circle: undecided.{band}"
    )


def _dots(axes: Axes, table: pd.DataFrame) -> None:
    """Draw a dot for each value; the columns are the rows of the figure, the seeds lie slightly below each other."""
    count = max(1, len(table.index) - 1)
    for number, (_, values) in enumerate(table.iterrows()):
        offset = 0.36 * (number / count - 0.5)
        axes.plot(values.to_numpy(float), [at + offset for at in range(len(values))], color=MUTED, zorder=1.5, **DOT)


def _references(axes: Axes, material: Material, metric: str, values: Sequence[float]) -> None:
    """Draw untrained student and teacher: lines where all arms share them, else ticks; far ones at the edge."""
    low, high = min(values), max(values)
    spread = (high - low) or abs(high) * 0.01 or 1.0
    ends = [low, high]
    names = list(material.scores(metric).columns)
    found = {name: known for name in DASHES if (known := material.reference(name, metric))}
    for place, (name, known) in enumerate(found.items()):
        label, style = f"{name} {_range(known)}", {"color": INK, "linewidth": 1, "linestyle": DASHES[name]}
        least, most = min(known.values()), max(known.values())
        if least < low - FAR * spread or most > high + FAR * spread:
            side = "left" if least < low else "right"
            label = f"← {label}" if side == "left" else f"{label} →"
            _above(axes, label, float(side == "right"), place, side, "axes fraction")
            continue
        ends += [least, most]
        if most - least < 1e-3 * spread:
            axes.axvline(least, zorder=1, **style)
        else:
            at = [names.index(arm) for arm in known]
            axes.vlines(list(known.values()), [y - 0.4 for y in at], [y + 0.4 for y in at], **style)
        _above(axes, label, (least + most) / 2, place, "center", "data")
    room = 0.04 * (max(ends) - min(ends) or spread)
    axes.set_xlim(min(ends) - room, max(ends) + room)


def _above(axes: Axes, label: str, x: float, place: int, side: str, where: str) -> None:
    """Write a label above the figure, on a line of its own."""
    style: dict[str, Any] = {"textcoords": "offset points", "ha": side, "va": "bottom", "fontsize": 11}
    axes.annotate(label, (x, 1.0), (0, 2 + 13 * place), xycoords=(where, "axes fraction"), **style)


def _range(values: Mapping[str, float]) -> str:
    low, high = numbers.short(min(values.values())), numbers.short(max(values.values()))
    return low if low == high else f"{low} to {high}"
