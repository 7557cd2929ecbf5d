"""The tables of a report, in a form that the page and the LaTeX file share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from neoplug.studies.report import numbers
from neoplug.studies.report.figures.costs import COSTS, cost_table
from neoplug.studies.report.material import Material, measure_of
from neoplug.studies.report.paths import published
from neoplug.studies.report.verdicts import verdict_of
from neoplug.studies.summary_schema import ContrastResult

REFERENCES = ("untrained", "teacher")


@dataclass(frozen=True)
class Cell:
    """A cell. `value`: what orders it, where that is not its text; `link`: where its text leads."""

    text: str
    value: float | str | None = None
    link: str = ""

    @property
    def order(self) -> str:
        """What orders it; empty where its text does, or nothing is known."""
        known = self.value is not None and self.value == self.value and str(self.value) != self.text
        return str(self.value) if known else ""


@dataclass(frozen=True)
class Row:
    """A row. `id`: its anchor; `arm`: the anchor of its arm, which links light up; `fixed`: it is not sorted."""

    cells: Sequence[Cell]
    id: str = ""
    arm: str = ""
    fixed: bool = False


@dataclass(frozen=True)
class Column:
    """A column. `numeric`: aligned to the right."""

    title: str
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """A table."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row] = field(repr=False)


def arm_cell(material: Material, arm: str) -> Cell:
    """Return the name of an arm, with a link to its runs."""
    return Cell(arm, arm, _link(material, arm))


def scores_table(material: Material, metric: str) -> Table:
    """Return the scores of all arms, and those of the references."""
    lines = [line for line in material.summary.arms if line.metric == metric]
    measure, decimals = measure_of(metric), numbers.decimals_for(line.sd for line in lines)
    rows = []
    for line in lines:
        link = _link(material, line.arm)
        show = _number(decimals, link)
        ends = None if line.lowest is None or line.highest is None else (line.lowest, line.highest)
        rows.append(
            Row(
                [
                    arm_cell(material, line.arm),
                    Cell(numbers.count(line.n), line.n, link),
                    show(line.mean),
                    Cell(numbers.interval(line.interval, decimals), line.mean),
                    show(line.sd),
                    show(line.interquartile_mean),
                    Cell(numbers.interval(ends, decimals), line.lowest),
                ]
            )
        )
    for name in REFERENCES:
        if found := material.reference(name, metric):
            low, high = min(found.values()), max(found.values())
            value = numbers.fixed(low, decimals)
            if numbers.fixed(high, decimals) != value:
                value = f"{value} to {numbers.fixed(high, decimals)}"
            rows.append(Row([Cell(name), Cell(""), Cell(value, low), *[Cell("")] * 4], fixed=True))
    titles = ("seeds", "mean", "95 % interval", "sd", "IQM", "lowest, highest")
    unit = f", {measure.unit}" if measure.unit else ""
    caption = (
        f"{numbers.capital(measure.title)} on the test half{unit}: each arm over its test seeds, and the references."
    )
    return Table(caption, [Column("arm", numeric=False), *map(Column, titles)], rows)


def contrasts_table(material: Material, lines: Sequence[ContrastResult]) -> Table:
    """Return the comparisons of one family and metric."""
    measure = measure_of(lines[0].metric)
    spreads = [(line.interval[1] - line.interval[0]) / 2 for line in lines if line.interval]
    decimals = numbers.decimals_for(spreads)
    with_documents = any(line.both_noises for line in lines)
    rows = []
    for line in lines:
        show = _number(decimals, _link(material, line.arm))
        both = line.both_noises.interval if line.both_noises else None
        rows.append(
            Row(
                [
                    arm_cell(material, line.arm),
                    arm_cell(material, line.control),
                    Cell(numbers.count(line.n), line.n),
                    show(line.estimate, signed=True),
                    Cell(numbers.interval(line.interval, decimals, signed=True), line.estimate),
                    *([Cell(numbers.interval(both, decimals, signed=True), line.estimate)] if with_documents else []),
                    Cell(numbers.p_value(line.p), line.p),
                    Cell(numbers.p_value(line.p_adjusted), line.p_adjusted),
                    Cell(numbers.p_value(line.p_equivalence), line.p_equivalence),
                    Cell(numbers.fixed(line.smallest_detectable, decimals), line.smallest_detectable),
                    _wins(line),
                    Cell(verdict_of(line).value),
                ]
            )
        )
    titles = [
        "n",
        "difference",
        "95 % interval",
        *(["with documents"] if with_documents else []),
        "p",
        "p, Holm",
        "p, equivalence",
        "detectable",
        "w–t–l",
    ]
    unit = f", {measure.unit}" if measure.unit else ""
    caption = (
        f"{numbers.capital(measure.title)}{unit}: arm minus control, paired by seed. Intervals are not adjusted; "
        "“detectable” is the smallest true difference that is found with probability 0.8; “w–t–l” counts the seeds at "
        "which the arm wins, ties and loses."
        + (" “With documents” is over new seeds and new documents." if with_documents else "")
    )
    columns = [Column("arm", False), Column("control", False), *map(Column, titles), Column("verdict", False)]
    return Table(caption, columns, rows)


def rates_table(material: Material) -> Table:
    """Return the good regions of searched keys."""
    rows = [
        Row(
            [
                arm_cell(material, line.arm),
                Cell(line.key),
                *(Cell(numbers.plain(value), value) for value in (line.best, line.lowest, line.highest)),
                Cell(("≥\u00a0" if line.open else "") + f"{line.width:.2f}", line.width),
            ]
        )
        for line in material.summary.rates
    ]
    titles = ("best", "good from", "to", "width, decades")
    caption = (
        "Values of a searched key whose mean on the validation half is within the margin of the best one. ≥: the "
        "region ends at the edge of what was tried."
    )
    return Table(caption, [Column("arm", False), Column("key", False), *map(Column, titles)], rows)


def ranks_table(material: Material) -> Table:
    """Return Kendall's tau of the ranks over seeds and over the levels of each axis."""
    rows = [
        Row(
            [
                Cell(measure_of(line.metric).title),
                Cell(line.over),
                Cell(numbers.count(line.items), line.items),
                Cell(numbers.count(line.pairs), line.pairs),
                Cell(numbers.fixed(line.mean, 2), line.mean),
                Cell(numbers.fixed(line.lowest, 2), line.lowest),
            ]
        )
        for line in material.summary.ranks
    ]
    columns = [Column("metric", False), Column("over", False), *map(Column, ("ranked", "pairs", "mean τ", "lowest τ"))]
    return Table(
        "Kendall’s τ-b between rankings: 1 is the same order, 0 none in common, −1 the reverse.", columns, rows
    )


def models_table(material: Material) -> Table:
    """Return the F tests of the linear models."""
    rows = []
    for line in material.summary.models:
        title = measure_of(line.metric).title
        terms = [("arms", line.arms)] if line.arms else []
        terms += [(" × ".join(one.axes), one) for one in line.interactions]
        for term, test in terms:
            rows.append(
                Row(
                    [
                        Cell(title),
                        Cell(term),
                        Cell(numbers.NONE if test.f is None else numbers.short(test.f), test.f),
                        Cell(f"{test.degrees[0]}, {test.degrees[1]}", test.degrees[0]),
                        Cell(numbers.p_value(test.p), test.p),
                    ]
                )
            )
    columns = [Column("metric", False), Column("term", False), *map(Column, ("F", "degrees of freedom", "p"))]
    caption = "Exploratory F tests of a linear model with the seed as block, not adjusted for their number."
    return Table(caption, columns, rows)


def costs_table(material: Material) -> Table:
    """Return the costs of each arm."""
    table = cost_table(material)
    measure = measure_of(material.metric)
    rows = [
        Row(
            [
                arm_cell(material, str(arm)),
                Cell(numbers.short(costs["score"]), costs["score"], _link(material, str(arm))),
                Cell(numbers.count(costs["trainable_parameters"]), costs["trainable_parameters"]),
                Cell(numbers.short(costs["seconds"]), costs["seconds"]),
                Cell(numbers.short(costs["peak_memory_bytes"] / 1e6), costs["peak_memory_bytes"]),
            ]
        )
        for arm, costs in table.iterrows()
    ]
    columns = [Column("arm", False), Column(measure.title), *map(Column, COSTS.values())]
    return Table("Medians over the completed test runs of each arm.", columns, rows)


def failures_table(material: Material) -> Table:
    """Return the runs that did not complete, with their reasons."""
    failed = material.runs[material.runs["status"] != "completed"]
    searched = [one.column for one in material.study.search.keys.values() if one.column in failed]
    rows = [
        Row(
            [
                Cell(run["arm"], run["arm"], f"#run-{number}"),
                Cell(str(run["kind"])),
                Cell(numbers.plain(run["seed"]), run["seed"]),
                *(Cell(numbers.plain(_float(run[key])), _float(run[key])) for key in searched),
                Cell(str(run["status"]).replace("_", " ")),
                Cell(published(str(run["reason"]))),
            ]
        )
        for number, run in failed.iterrows()
    ]
    columns = [Column("arm", False), Column("kind", False), Column("seed"), *map(Column, searched)]
    columns += [Column("status", False), Column("reason", False)]
    return Table("Every run that did not complete. None is left out of the counts.", columns, rows)


def runs_table(material: Material, page: Path) -> Table:
    """Return all runs. `page`: the file with the report, from which links to their folders begin."""
    runs, metrics = material.runs, list(material.study.metrics)
    searched = [one.column for one in material.study.search.keys.values() if one.column in runs]
    if not searched and "learning_rate" in runs:
        searched = ["learning_rate"]
    shown: list[tuple[str, str, Callable[[float], str]]] = [
        *((key, key.replace("_", " "), numbers.plain) for key in searched),
        *((name, measure_of(name).title, numbers.short) for name in metrics),
        (f"validation_{material.metric}", f"{measure_of(material.metric).title}, validation", numbers.short),
        ("trainable_parameters", "trainable parameters", numbers.count),
        ("tokens", "tokens", numbers.count),
        ("seconds", "seconds", numbers.short),
    ]
    rows = []
    for number, run in runs.iterrows():
        values = [(show, _float(run.get(key))) for key, _, show in shown]
        rows.append(
            Row(
                [
                    Cell(run["arm"]),
                    Cell(str(run["kind"])),
                    Cell(numbers.plain(run["seed"]), run["seed"]),
                    Cell(str(run["status"]).replace("_", " ")),
                    *(Cell(show(value) if value is not None else numbers.NONE, value) for show, value in values),
                    _folder(material.folder, str(run["run"]), page),
                    Cell(str(run["id"])),
                ],
                id=f"run-{number}",
                arm=material.anchors.get(run["arm"], ""),
            )
        )
    columns = [Column("arm", False), Column("kind", False), Column("seed"), Column("status", False)]
    columns += [*(Column(title) for _, title, _ in shown), Column("folder", False), Column("id", False)]
    return Table("All runs of the study: those of the test seeds, then the search, arm by arm.", columns, rows)


def _wins(line: ContrastResult) -> Cell:
    found = line.improvement
    return Cell(f"{found.wins}–{found.ties}–{found.losses}", found.paired) if found else Cell(numbers.NONE)


def _folder(study: Path, run: str, page: Path) -> Cell:
    """Return the folder of a run, with a link where it is there."""
    if not run:
        return Cell("removed")
    if not (study / run).exists():
        return Cell(run)
    return Cell(run, run, quote(os.path.relpath(study / run, page.parent)))


def _link(material: Material, arm: str) -> str:
    anchor = material.anchors.get(arm)
    return f"#{anchor}" if anchor else ""


def _number(decimals: int, link: str) -> Callable[..., Cell]:
    """Return a function that makes a cell of a number, which leads to the runs that it is computed from."""

    def cell(value: float | None, *, signed: bool = False) -> Cell:
        return Cell(numbers.fixed(value, decimals, signed=signed), value, "" if value is None else link)

    return cell


def _float(value: Any) -> float | None:
    return None if value is None or isinstance(value, str) or pd.isna(value) else float(value)
