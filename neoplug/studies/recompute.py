"""The summary of a study computed again, from its ledger and the sums per document; study.json describes the study.

A ledger may have lines of jobs that the study no longer asks for: which lines count, the table of results says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from neoplug.errors import DamageError, UsageError
from neoplug.studies.arms import Arm
from neoplug.studies.directory import AGAIN, NO_TABLE
from neoplug.studies.jobs import Job
from neoplug.studies.record import read_description, read_parquet, read_table
from neoplug.studies.scores import with_arms
from neoplug.studies.summary import summarise
from neoplug.studies.tables import documents_of, references_of, results_of
from neoplug.studies.worker import make_row

if TYPE_CHECKING:
    import pandas as pd

    from neoplug.studies.directory import StudyDir
    from neoplug.studies.ledger import Row
    from neoplug.studies.study import Study
    from neoplug.studies.summary_schema import Summary


@dataclass(frozen=True)
class Recomputed:
    """A summary computed again.

    has_documents   whether there are sums per document
    contradictions  jobs that the ledger does not have as the table of results has them, in sentences
    """

    summary: Summary
    has_documents: bool
    contradictions: list[str]


def recompute(directory: StudyDir) -> Recomputed:
    """Return the summary that the ledger and the sums per document of a study give.

    Raises:
        UsageError: there is no ledger, or no table of results.
        DamageError: a file is damaged.
    """
    study, ledger = read_description(directory.path), directory.ledger
    ledger.refresh()
    results = read_table(directory.path, "results", study)
    if not ledger.rows or results is None:
        absent = "results.csv" if ledger.rows else ledger.file.name
        raise UsageError(f"{directory.path} has no {absent}, so nothing can be computed\nfix: restore it from a copy")
    done, contradictions = _done(directory, study, ledger.rows, results)
    documents = _documents(directory, done)
    summary = summarise(study, results_of(directory, done, {}), documents, references_of(done))
    return Recomputed(summary, documents is not None, contradictions)


def _done(
    directory: StudyDir, study: Study, rows: Mapping[str, Row], results: pd.DataFrame
) -> tuple[list[tuple[Job, Row]], list[str]]:
    """Return the jobs in the table of results with their lines in the ledger, and where the two contradict."""
    arms, results = {arm.name: arm for arm in study.arms}, with_arms(study, results)
    arms_of = results.groupby("id")["arm"].agg(set)  # equal arms have the same job
    done: list[tuple[Job, Row]] = []
    contradictions = []
    for line in results.to_dict("records"):
        job = Job(line["id"], arms[line["arm"]], line["kind"], line["seed"], {})
        row = rows.get(job.id)
        if not job.id:  # no trial of the arm can be used
            done.append((job, make_row(directory, job.as_dict(), status=line["status"], reason=line["reason"])))
        elif row is None:
            contradictions.append(f"{job.id} has no line in the ledger")
        else:
            done.append((replace(job, trial=row.trial), row))
            if Arm(row.arm).name not in arms_of[job.id] or (row.kind, row.seed) != (job.kind, job.seed):
                contradictions.append(
                    f"{job.id} has another arm, kind or seed in the ledger than in the table of results"
                )
    return done, contradictions


def _documents(directory: StudyDir, done: Sequence[tuple[Job, Row]]) -> pd.DataFrame | None:
    """Return the sums per document: of each job's file where all completed jobs have one, else of the one table."""
    completed = {row.id for _, row in done if row.status == "completed"}
    if all(directory.documents(job).exists() for job in completed):
        table = documents_of(directory, done)
        return None if table is None else table.to_pandas()
    file = directory.path / "documents.parquet"
    if not file.exists():
        return None
    documents = read_parquet(file)
    if not {"id", "document", "half", "tokens"} <= set(documents):
        raise DamageError(file, NO_TABLE, AGAIN)
    return documents
