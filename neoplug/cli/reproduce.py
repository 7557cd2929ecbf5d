"""`neoplug reproduce`: compare a run with this machine, replay it, and say whether the replay agrees."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neoplug.cli.arguments import AsJson, Overrides, Trust
from neoplug.cli.screen import echo, echo_json, heading, table

if TYPE_CHECKING:
    from neoplug.reproduction.comparison import Comparison, Deviation
    from neoplug.reproduction.differences import Difference
    from neoplug.reproduction.reproduce import Reproduction

PAGE = "reproduction.html"


def reproduce(
    original: Annotated[
        Path, typer.Argument(help="A run's directory, its lock.json, or an archive of it.", metavar="RUN")
    ],
    overrides: Overrides = None,
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
    """Replay a run and compare each step.

    Exit code 0: bit-equal, or within what is stated; 1: not; 2: it cannot be tried.
    """
    from neoplug.cli import watch
    from neoplug.environment.memory import keep_freed
    from neoplug.files import write_atomically
    from neoplug.reproduction.page import page_of
    from neoplug.reproduction.reproduce import reproduce as replay
    from neoplug.runs.progress import Silent

    keep_freed()
    chosen: dict[str, Any] = {
        "overrides": overrides or (), "output": output, "dry_run": dry_run, "trust": trust or (),
    }  # fmt: skip
    if as_json:
        found = replay(original, progress=Silent(), show=lambda _: None, **chosen)
    else:
        with watch.log_to_stderr(), watch.progress(every=10) as progress:
            found = replay(original, progress=progress, show=print_differences, **chosen)
    if watch.is_main():
        if page := report or (found.run and found.run / PAGE):
            write_atomically(page, page_of(found))
        echo_json(as_dict(found)) if as_json else print_verdict(found)
    raise typer.Exit(found.exit_code)


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
    size = "" if deviation.size is None else f", by {deviation.size:.2g}"
    return f"{place}, {deviation.key}: {_shown(deviation.before)} -> {_shown(deviation.now)}{size}"


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


def _shown(value: Any) -> str:
    return "(absent)" if value is None else str(value)
