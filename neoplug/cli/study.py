"""`neoplug study`: run the arms of a study over seeds and tuned rates, and print what they measured."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neoplug.cli.arguments import AsJson, Trust
from neoplug.cli.screen import duration, echo, echo_json, heading, size, table
from neoplug.errors import UsageError

if TYPE_CHECKING:
    from neoplug.studies.directory import StudyDir
    from neoplug.studies.estimate import Estimate
    from neoplug.studies.execute import StudyResult
    from neoplug.studies.study import Study
    from neoplug.studies.summary_schema import Summary


def study(
    source: Annotated[
        str, typer.Argument(help="A study file, the name of a shipped study, or a study's directory.", metavar="STUDY")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Changes to the base recipe of all arms.", metavar="KEY.PATH=VALUE", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="The study's directory: studies/NAME by default.", metavar="DIR", show_default=False),
    ] = None,
    trust: Trust = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what it costs; run a few steps only.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Show what the study in the directory does.")] = False,
    job: Annotated[
        str | None,
        typer.Option(help="Run this job of the directory, as a printed command does.", metavar="ID"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a study: every arm, over tuned rates and seeds.

    It goes on where it was stopped; what is done is never run again.
    """
    if status or job:
        print_or_perform(Path(output or source), status, job, as_json)
        return
    from neoplug.studies.execute import chosen_folder, execute_study, read_study

    checked = read_study(source, overrides or (), trust or ())
    folder = chosen_folder(source, output, checked)
    from neoplug.cli import study_watch, watch

    if dry_run:
        from neoplug.studies.estimate import estimate, validate_fits

        with watch.log_to_stderr():
            found = estimate(checked, folder)
        echo_json(vars(found)) if as_json else print_estimate(checked, found)
        validate_fits(checked, found, folder)
        return
    with watch.log_to_stderr(), study_watch.watching() as shown:
        result = execute_study(checked, folder, shown)
    print_result(checked, result, as_json)


def print_or_perform(folder: Path, status: bool, job: str | None, as_json: bool) -> None:
    """Print the status of the study in a directory, or run one of its jobs."""
    from neoplug.studies.directory import StudyDir

    directory = StudyDir.open(folder)
    if status:
        print_status(directory, as_json)
        return
    from neoplug.cli import watch
    from neoplug.studies.worker import Worker

    worker = Worker(directory.path.absolute())
    with watch.log_to_stderr():
        worker(str(job))
    row = worker.ledger.rows[str(job)]
    echo(f"{row.id}: {row.status}" + (f": {row.reason}" if row.reason else ""))


def print_status(directory: "StudyDir", as_json: bool) -> None:
    """Print what a study does and what is done, from its files alone."""
    from dataclasses import asdict

    from neoplug.studies.status import read_state

    state, at_work = read_state(directory), directory.is_held
    if state is None:
        raise UsageError(f"{directory.path} has not begun\nfix: neoplug study {directory.path}")
    if as_json:
        echo_json({**asdict(state), "at_work": at_work})
        return
    from neoplug.cli.study_watch import lines

    idle = [] if at_work or state.phase == "complete" else ["no process is at work on it"]
    echo("\n".join([*lines(state), *idle]))


def print_estimate(checked: "Study", found: "Estimate") -> None:
    """Print what a study costs."""
    heading(f"study {checked.name}")
    table([[f"  {axis}", ", ".join(levels)] for axis, levels in checked.axes.items()])
    jobs = found.jobs
    echo(
        f"  {len(checked.arms):,} arms; {jobs['search']:,} runs to search, at most {jobs['extension']:,} to extend the "
        f"search, {jobs['test']:,} to test; {found.done:,} are done"
    )
    heading("time, estimated")
    seconds = found.run_seconds.values()
    echo(f"  {duration(min(seconds))} to {duration(max(seconds))} a run, from {found.measured_on}")
    echo(f"  {duration(3600 * found.hours)} in all, with {found.workers} at a time")
    heading("memory and disk, estimated")
    echo(f"  {size(max(found.memory_bytes.values()))} of memory a run at most")
    echo(f"  {size(found.disk_bytes)} of disk, with `keep: {checked.keep}`")


def print_result(checked: "Study", result: "StudyResult", as_json: bool) -> None:
    """Print a line for each arm and planned comparison; nothing where jobs are left, whose commands are printed."""
    if result.left:
        return
    frame = result.results
    if as_json:
        rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
        echo_json({"path": str(result.path), "results": rows, "summary": result.summary.model_dump(mode="json")})
        return
    metrics = [name for name in checked.metrics if name in frame]
    rows = []
    for arm in checked.arms:
        of_arm = frame[(frame[list(arm.levels)] == list(arm.levels.values())).all(axis=1) & (frame["kind"] == "test")]
        done = of_arm[of_arm["status"] == "completed"]
        means = ["" if done.empty else f"{done[name].mean():.4f}" for name in metrics]
        rows.append([arm.name, f"{len(done)}/{len(of_arm)}", *means])
    heading("means of the test runs, on the test half of the held-out text")
    table(rows, header=("", "runs", *metrics), numbers=True)
    for (status, reason), group in frame[frame["status"] != "completed"].groupby(["status", "reason"]):
        echo(f"{len(group)} {status.replace('_', ' ')}: {reason.partition(chr(10))[0]}")
    print_summary(result.summary)
    heading("files")
    files = ("results.csv", "references.csv", "documents.parquet", "summary.json", "ledger.jsonl")
    table([(f"  {name}",) for name in files])
    echo(f"  in {result.path}; `neoplug report {result.path}` shows them as a page")


def print_summary(summary: "Summary") -> None:
    """Print the planned comparisons and the answer for each family and metric."""
    from neoplug.studies.report.numbers import decimals_for, fixed, half_width, interval, p_value

    for answer in summary.robust:
        lines = [line for line in summary.contrasts if (line.family, line.metric) == (answer.family, answer.metric)]
        decimals = decimals_for(half_width(line.interval) for line in lines)
        heading(f"{answer.family}, {answer.metric}: robust {answer.robust} ({answer.reason})")
        cells = [
            (
                f"  {line.arm} - {line.control}",
                fixed(line.estimate, decimals, signed=True),
                interval(line.interval, decimals, signed=True),
                p_value(line.p_adjusted),
                str(line.n),
            )
            for line in lines
        ]
        table(cells, header=("", "difference", "95 % interval", "adjusted p", "seeds"), numbers=True)
    for remark in summary.remarks:
        echo(f"  {remark}")
