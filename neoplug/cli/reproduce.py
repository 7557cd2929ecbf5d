"""`neoplug reproduce`: replay a run, or compute a study's contrasts again, and say whether that agrees."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neoplug.cli.arguments import AsJson, Overrides, Trust
from neoplug.cli.screen import echo, echo_json, heading, table
from neoplug.errors import UsageError
from neoplug.files import write_atomically

if TYPE_CHECKING:
    from neoplug.reproduction.comparison import Comparison, Deviation
    from neoplug.reproduction.differences import Difference
    from neoplug.reproduction.reproduce import Reproduction
    from neoplug.studies.summary_comparison import Change, Recomputation

PAGE = "reproduction.html"


def reproduce(
    original: Annotated[
        Path,
        typer.Argument(
            help="A run's directory, its lock.json or an archive of it; or a study's directory.", metavar="RUN"
        ),
    ],
    overrides: Overrides = None,
    run: Annotated[
        str | None,
        typer.Option("--run", help="Replay this run of a study, by its id in results.csv.", metavar="ID"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Where the replay is written: by default runs/NAME-DATE-TIME.", metavar="DIR"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compare with the lock alone; replay nothing.")] = False,
    report: Annotated[
        Path | None, typer.Option(help="The page of the comparison; DIR/reproduction.html by default.", metavar="FILE")
    ] = None,
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Replay a run and compare each step, or compute a study's summary again.

    Exit code 0: bit-equal, or within what is stated; 1: not; 2: it cannot be tried.
    """
    from neoplug.studies.directory import StudyDir

    chosen: dict[str, Any] = {
        "overrides": overrides or (), "output": output, "dry_run": dry_run, "trust": trust or (),
    }  # fmt: skip
    if run is None and StudyDir.is_study(original):
        if overrides or output:
            raise UsageError(
                f"{original} is a study, whose summary is computed again: nothing is run\n"
                "why: changes of a recipe and --output are for a replay\nfix: name one of its runs with --run ID"
            )
        raise typer.Exit(recompute(original, report, as_json))
    if run is not None:
        from neoplug.studies.replay import recorded_run

        original, chosen["record"] = recorded_run(StudyDir.open(original), run)
    raise typer.Exit(replay(original, chosen, report, as_json))


def replay(original: Path, chosen: dict[str, Any], report: Path | None, as_json: bool) -> int:
    """Replay a run, print the comparison, and return the exit code."""
    from neoplug.cli import watch
    from neoplug.environment.memory import keep_freed
    from neoplug.reproduction.page import page_of
    from neoplug.reproduction.reproduce import reproduce
    from neoplug.runs.progress import Silent

    keep_freed()
    if as_json:
        found = reproduce(original, progress=Silent(), show=lambda _: None, **chosen)
    else:
        with watch.log_to_stderr(), watch.progress(every=10) as progress:
            found = reproduce(original, progress=progress, show=print_differences, **chosen)
    if watch.is_main():
        if page := report or (found.run and found.run / PAGE):
            write_atomically(page, page_of(found))
        echo_json(as_dict(found)) if as_json else print_verdict(found)
    return found.exit_code


def recompute(study: Path, report: Path | None, as_json: bool) -> int:
    """Compute the summary of a study again, print the comparison, and return the exit code."""
    from neoplug.reproduction.page import page_of_study
    from neoplug.studies.summary_comparison import recompute_study

    found = recompute_study(study)
    if report:
        write_atomically(report, page_of_study(found))
    echo_json(study_as_dict(found)) if as_json else print_recomputation(found)
    return found.exit_code


def print_recomputation(found: Recomputation) -> None:
    """Print which parts of a study's summary are equal, what differs, and the verdict."""
    heading("the summary, computed again from the ledger")
    table([[f"  {part}", f"{equal:,} of {count:,} are equal"] for part, (count, equal) in found.parts.items()])
    if not found.is_equal:
        heading("what differs")
    for line, (first, *others) in found.changes.items():
        more = f"; and {len(others):,} more value{'s' * (len(others) != 1)}" if others else ""
        echo(f"  {line.part}: {line.name}")
        echo(f"    {first.key}: {_change(first)}{more}")
    for contradiction in found.contradictions:
        echo(f"  {contradiction}")
    echo()
    echo(found.verdict)


def print_differences(differences: list[Difference]) -> None:
    """Print what differs from the lock, and what it may change."""
    from neoplug.cli.watch import is_main

    if not is_main():
        return
    heading("different here")
    if not differences:
        echo("  nothing that a result depends on")
    for one in differences:
        echo(f"  {one.what}: {_shown(one.locked)} -> {_shown(one.here)}")
        echo(f"    may change {one.may_change}")


def print_verdict(found: Reproduction) -> None:
    """Print what the replay gave, and the verdict."""
    if found.comparison is not None:
        heading("the replay, step by step")
        table([[f"  {name}", value] for name, value in comparison_rows(found.comparison)])
    if found.judgements:
        heading("the recipe's reference")
        for judgement in found.judgements:
            echo(f"  {judgement}")
    echo()
    if found.run is not None:
        echo(f"{found.run}")
    echo(found.verdict)


def comparison_rows(comparison: Comparison) -> list[tuple[str, str]]:
    """Return the rows of a table: steps that are equal, the first deviation, and the largest."""
    rows = [("bit-equal", f"{comparison.equal:,} of {comparison.steps:,} steps")]
    for name, deviation in (("first deviation", comparison.first), ("largest", comparison.largest)):
        if deviation is not None:
            rows.append((name, deviation_text(deviation)))
    return rows


def deviation_text(deviation: Deviation) -> str:
    """Return a deviation in words and numbers."""
    place = f"step {deviation.step:,}" if isinstance(deviation.step, int) else "after training"
    return f"{place}, {deviation.key}: {_change(deviation)}"


def as_dict(found: Reproduction) -> dict[str, Any]:
    """Return a reproduction as plain data for JSON."""
    from dataclasses import asdict

    return {
        "format": 1,
        "verdict": found.verdict,
        "exit_code": found.exit_code,
        "equal": found.is_equal,
        "tolerance": found.tolerance,
        "run": None if found.run is None else str(found.run),
        "differences": [{**asdict(one), "may_change": one.may_change} for one in found.differences],
        "comparison": None if found.comparison is None else asdict(found.comparison),
        "reference": [
            {"metric": one.metric, "value": one.value, "interval": one.target.interval, "inside": one.is_inside}
            for one in found.judgements
        ],
    }


def study_as_dict(found: Recomputation) -> dict[str, Any]:
    """Return a recomputation as plain data for JSON."""
    from dataclasses import asdict

    from neoplug.studies.summary_comparison import TOLERANCE

    return {
        "format": 1,
        "verdict": found.verdict,
        "exit_code": found.exit_code,
        "equal": found.is_equal,
        "tolerance": TOLERANCE,
        "parts": {part: {"lines": lines, "equal": equal} for part, (lines, equal) in found.parts.items()},
        "deviations": [
            {"part": line.part, "line": line.name, **asdict(change)}
            for line, changes in found.changes.items()
            for change in changes
        ],
        "contradictions": [*found.contradictions],
    }


def _change(change: Deviation | Change) -> str:
    size = "" if change.size is None else f", by {change.size:.2g}"
    return f"{_shown(change.before)} -> {_shown(change.now)}{size}"


def _shown(value: Any) -> str:
    return "(absent)" if value is None else str(value)
