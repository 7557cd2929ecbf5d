"""A run of a study for its replay: where its lock is, and what the study recorded of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neoplug.errors import UsageError, did_you_mean
from neoplug.runs.directory import RunDir
from neoplug.runs.measurements import Measurements, Record, measurements_of
from neoplug.studies.directory import StudyDir
from neoplug.studies.ledger import Row
from neoplug.studies.measuring import curve_steps, measure
from neoplug.studies.tables import VALIDATION

COUNTS = ("trainable_parameters", "total_parameters", "steps", "tokens", "answer_tokens")


def recorded_run(directory: StudyDir, job: str) -> tuple[Path, Record]:
    """Return the run's directory where it is kept, else its lock; and its record: its ledger line, and its directory.

    Raises:
        UsageError: the ledger has no such job, the job did not complete, or nothing is there that replays it.
        DamageError: the ledger is damaged.
    """
    line = _measurements(dict(_completed(directory, job)))
    if RunDir.is_run(directory.run(job)):
        run = RunDir(directory.run(job))
        return run.path, Record(
            _joined(measurements_of(run), line), lambda replay: _joined(measurements_of(replay), _as_line(replay))
        )
    if not directory.lock(job).is_file():
        raise UsageError(
            f"the run {job} cannot be replayed: neither its directory nor {directory.lock(job)} is there\n"
            "why: they have its recipe and all that it read\nfix: restore one of them from a copy"
        )
    return directory.lock(job), Record(line, _as_line)


def _completed(directory: StudyDir, job: str) -> Row:
    """Return the line of a job that completed. Raises UsageError, DamageError."""
    ledger = directory.ledger
    ledger.refresh()
    row = ledger.rows.get(job)
    if row is None:
        raise UsageError(
            f"{ledger.file} has no job `{job}`{did_you_mean(job, ledger.rows)}\n"
            "fix: take the id from the column `id` of results.csv"
        )
    if row.status != "completed":
        raise UsageError(
            f"the run {job} did not complete, so there is nothing to compare a replay with\n"
            f"why: {row.status.replace('_', ' ')}: {row.reason.partition(chr(10))[0]}\n"
            "fix: take one whose `status` in results.csv is `completed`"
        )
    return row


def _as_line(run: RunDir) -> Measurements:
    """Return the measurements that the ledger would have of a run."""
    return _measurements(measure(run).fields)


def _measurements(fields: Mapping[str, Any]) -> Measurements:
    """Return the measurements in a line of the ledger: those of the halves, of probes, and counts."""
    curve, values = fields["curve"], fields["values"]
    points = zip(curve_steps(fields["steps"]), curve.get("tokens", ()), curve.get("loss", ()), strict=False)
    steps = [{"step": step, "tokens": tokens, "loss": loss} for step, tokens, loss in points]
    after: dict[str, Any] = {"test": {}, "validation": {}} | {name: fields[name] for name in COUNTS}
    for name, value in values.items():
        if name.startswith("probes."):
            after[name] = value
        else:
            half = "validation" if name.startswith(VALIDATION) else "test"
            after[half][name.removeprefix(VALIDATION)] = value
    return Measurements(steps, after)


def _joined(run: Measurements, line: Measurements) -> Measurements:
    """Return the steps of a run's directory, and after training what it and the line of the ledger have."""
    return Measurements(run.steps, {**run.after, **line.after})
