"""The page of a report and its LaTeX tables, made of figures, tables and sentences."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import jinja2
from markupsafe import Markup

from neoplug import __version__
from neoplug.errors import UsageError
from neoplug.errors.text import escaped, redacted
from neoplug.files import write_atomically
from neoplug.studies.report import numbers, tables
from neoplug.studies.report.answers import answers_of
from neoplug.studies.report.latex import HEAD, latex_table
from neoplug.studies.report.material import Material, measure_of, read_material
from neoplug.studies.report.protocol import checklist_of, protocol_of
from neoplug.studies.report.tables import Table
from neoplug.studies.report.verdicts import families

if TYPE_CHECKING:
    from neoplug.studies.report.figures.canvas import Figure

    Drawer = Callable[[Material, str, str], Figure | None]

Part = TypeVar("Part")
PAGE, LATEX = "report.html", "tables.tex"
FILES = {
    "results.csv": "all runs with all measures",
    "results.parquet": "the same with types",
    "summary.json": "all comparisons",
    "documents.parquet": "sums of each run on each document",
    LATEX: "the tables of scores and comparisons for LaTeX",
}
CALIBRATION = ("ece", "brier")


@dataclass(frozen=True)
class Block:
    """A part of a section: a heading, figures and tables below it, and a note where there is something to say."""

    title: str
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A section. `id`: its anchor."""

    id: str
    title: str
    intro: str
    blocks: list[Block]


def write_report(folder: Path, output: Path | None = None) -> list[Path]:
    """Write the report of the study in `folder`: the page, and the LaTeX tables next to it. Return both paths.

    output  the page; report.html in the folder by default

    Raises:
        UsageError: there is no study with results, or a package is missing.
        DamageError: a file is not what neoplug wrote.
        DiskError: a file cannot be written.
    """
    if find_spec("matplotlib") is None:
        raise UsageError("a report needs matplotlib, which is not installed\nfix: pip install 'neoplug[report]'")
    page = folder / PAGE if output is None else output
    if page.is_dir():
        raise UsageError(f"{page} is a folder\nfix: name a file, as {page / PAGE}")
    material = read_material(folder)
    latex = page.with_name(LATEX)
    write_atomically(page, render(material, page))
    write_atomically(latex, render_latex(material))
    return [page, latex]


def render(material: Material, page: Path) -> str:
    """Return the page. `page`: where it will be, from which links to run folders begin."""
    from neoplug.studies.report.figures.canvas import styled

    with styled():
        sections = list(_sections(material))
    script = _asset("sort.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _environment().get_template("report.html").render(
        study=material.study,
        title=material.study.name,
        sections=sections,
        answers=answers_of(material),
        remarks=material.summary.remarks,
        protocol=protocol_of(material),
        checklist=checklist_of(material),
        failures=tables.failures_table(material),
        runs=tables.runs_table(material, page),
        banner=_banner(material),
        lead=_lead(material),
        files={name: text for name, text in FILES.items() if name == LATEX or (material.folder / name).is_file()},
        version=material.lock.get("version") or __version__,
        finished=max((str(row.get("finished", "")) for row in material.ledger()), default="")[:10],
        style=Markup(_asset("style.css")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )  # fmt: skip


def render_latex(material: Material) -> str:
    """Return the tables of scores and of comparisons as LaTeX."""
    parts = [HEAD]
    for number, metric in enumerate(material.study.metrics, 1):
        parts.append(latex_table(tables.scores_table(material, metric), f"scores-{number}"))
    for number, lines in enumerate(families(material.summary.contrasts).values(), 1):
        parts.append(latex_table(tables.contrasts_table(material, lines), f"comparisons-{number}"))
    return "\n".join(parts)


def _environment() -> jinja2.Environment:
    """Return jinja2's environment: all text is escaped for HTML, and before that what could hide or control text."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(files("neoplug.studies.report") / "templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: (
            escaped(redacted(value)) if isinstance(value, str) and not isinstance(value, Markup) else value
        ),
    )


def _asset(name: str) -> str:
    return (files("neoplug.studies.report") / "templates" / name).read_text(encoding="utf-8")


def _banner(material: Material) -> str:
    """Return what is to be known before anything else is read; empty for a complete study."""
    if material.is_unfinished:
        total = len(material.study.arms) * len(material.study.seeds)
        phase = material.state.get("phase", "")
        at = f" It is in the phase “{phase}”." if phase and phase != "complete" else ""
        return (
            f"This study is not finished: {total - material.missing:,} of {total:,} test runs have ended.{at} "
            "Everything below is provisional."
        )
    if material.completed.empty:
        return "No test run of this study completed: there is nothing to compare. The reasons are below."
    return ""


def _lead(material: Material) -> str:
    study = material.study
    chosen = measure_of(material.metric).title
    counts = ((study.arms, "arm"), (study.seeds, "test seed"), (material.runs, "run"))
    size = ", ".join(numbers.of(len(counted), noun) for counted, noun in counts)
    return f"{size}. Held-out text, temperature 1; {chosen} chooses what is tuned."


def _sections(material: Material) -> Iterator[Section]:
    """Yield the sections with figures, in the order of the page; one without figures and tables says why."""
    from neoplug.studies.report.figures import costs, curves, forest, maps

    def of_metrics(make: Drawer, prefix: str, table: Callable[[Material, str], Table] | None = None) -> list[Block]:
        blocks = []
        for number, metric in enumerate(material.study.metrics):
            figure = make(material, metric, f"{prefix}{number}")
            shown = table(material, metric) if table else None
            if figure or (shown and shown.rows):
                blocks.append(Block(numbers.capital(measure_of(metric).title), _only(figure), _only(shown)))
        return blocks

    yield Section("scores", "Scores of the arms", "", of_metrics(forest.scores_figure, "s", tables.scores_table))
    yield Section(
        "comparisons",
        "Planned comparisons",
        "" if material.summary.contrasts else "The study plans no comparison.",
        [
            Block(
                f"{numbers.capital(measure_of(metric).title)}, {family}",
                _only(forest.differences_figure(material, lines, f"d{number}")),
                [tables.contrasts_table(material, lines)],
            )
            for number, ((family, metric), lines) in enumerate(families(material.summary.contrasts).items())
        ],
    )
    explored = of_metrics(maps.plane_figure, "m")
    models = tables.models_table(material)
    if models.rows:
        explored.append(Block("Linear model", tables=[models]))
    yield Section(
        "map", "Arms on two axes", "" if explored else "It takes two axes that vary, and completed test runs.", explored
    )
    yield _ranks(material, of_metrics(maps.ranks_figure, "r"))
    yield _rates(material)
    learning = curves.learning_figure(material, "l")
    kept = "No curve was kept: the run folders are removed, and the ledger has none."
    yield Section("learning", "Learning curves", "" if learning else kept, [Block("", [learning])] if learning else [])
    priced = costs.costs_figure(material, "c")
    costly = tables.costs_table(material)
    yield Section(
        "costs",
        "Quality and cost",
        "" if costly.rows else "No test run completed.",
        [Block("", _only(priced), [costly])] if costly.rows else [],
    )
    yield Section("bins", "Calibration, and KL by the teacher’s entropy", _unmeasured(material), [])


def _only(part: Part | None) -> list[Part]:
    """Return a list of what there is."""
    return [] if part is None else [part]


def _ranks(material: Material, blocks: list[Block]) -> Section:
    table = tables.ranks_table(material)
    if table.rows:
        blocks.append(Block("Agreement of rankings", tables=[table]))
    return Section(
        "ranks",
        "Stability of ranks",
        "" if blocks else "It takes two arms and two seeds with completed test runs.",
        blocks,
    )


def _rates(material: Material) -> Section:
    """Return the section on what was searched."""
    from neoplug.studies.report.figures.curves import rates_figure

    found = [
        Block(key, [figure])
        for number, (key, searched) in enumerate(material.study.search.keys.items())
        if (figure := rates_figure(material, key, searched, f"k{number}"))
    ]
    table = tables.rates_table(material)
    if table.rows:
        found.append(Block("Good regions", tables=[table]))
    none = "No run of the search completed." if material.study.search.keys else "The study tunes nothing."
    return Section("rates", "Score against what was tuned", "" if found else none, found)


def _unmeasured(material: Material) -> str:
    """Return which measures of calibration there are, and that the figures of their parts are left out."""
    names: Mapping[str, None] = dict.fromkeys(
        column for column in material.runs if column.startswith("probes.") and column.rpartition(".")[2] in CALIBRATION
    )
    left_out = (
        "A reliability diagram and the KL by bins of the teacher’s entropy need sums by bin, which the runs do not keep"
    )
    if not names:
        return f"{left_out}; no probe measured the ECE or the Brier score."
    return f"{left_out}; {', '.join(names)} of each run are in results.csv."
