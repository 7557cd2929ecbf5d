"""The tables of a study, as pandas frames and as files: results, references and sums per document.

    results.csv, .parquet     a row for each job: the axes, seed, kind, status, reason, trials, learning_rate and each
                              other searched key, every measure as NAME and validation_NAME, trainable_parameters,
                              seconds, tokens, run, total_parameters, answer_tokens, peak_memory_bytes, id
    references.csv, .parquet  for each arm the measures of its `untrained` student and of its `teacher`: `reference`
    documents.parquet         for each job and held-out document: the axes, seed, kind, id, half, and the columns of a
                              run's evaluation/after.parquet (`neoplug.evaluation.evaluate`)

Of a job of the kind `search` they have the validation half alone: the test half is reported once, for what was chosen.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from neoplug.errors import DamageError
from neoplug.files import write_atomically
from neoplug.registry.measures import MEASURES
from neoplug.studies.checks import column_of
from neoplug.studies.directory import AGAIN, NO_TABLE, StudyDir

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow

    from neoplug.studies.jobs import Job
    from neoplug.studies.ledger import Numbers, Row

LEARNING_RATE = "train.learning_rate"
INTEGERS = ("trainable_parameters", "tokens", "total_parameters", "answer_tokens", "peak_memory_bytes")
VALIDATION = "validation_"


def results_of(directory: StudyDir, done: Sequence[tuple[Job, Row]], rates: Mapping[str, float]) -> pd.DataFrame:
    """Return the results: a row for each pair of a job and its ledger line.

    rates  arm -> the learning rate of its recipe, which counts where it is not searched
    """
    import pandas as pd

    measures, trials = _measures(row.values for _, row in done), _trials(job for job, _ in done)
    frame = pd.DataFrame(
        {
            **job.arm.levels,
            "seed": job.seed,
            "kind": job.kind,
            "status": row.status,
            "reason": row.reason,
            "trials": trials[job.arm.name],
            "learning_rate": rates.get(job.arm.name),
            **{column_of(key, job.trial): value for key, value in job.trial.items()},
            **{name: _shown(row.values, name, job.kind) for name in measures},
            "trainable_parameters": row.trainable_parameters,
            "seconds": row.seconds,
            "tokens": row.tokens,
            "run": row.run if row.run and (directory.path / row.run).exists() else "",
            "total_parameters": row.total_parameters,
            "answer_tokens": row.answer_tokens,
            "peak_memory_bytes": row.peak_memory_bytes,
            "id": row.id,
        }
        for job, row in done
    )
    numbers = [*measures, "seconds"]
    return frame.astype({**dict.fromkeys(numbers, "float64"), **dict.fromkeys(INTEGERS, "Int64")}) if done else frame


def references_of(done: Iterable[tuple[Job, Row]]) -> pd.DataFrame:
    """Return the measures of each arm's untrained student and teacher, as its first run measured them."""
    import pandas as pd

    first: dict[str, tuple[Job, Row]] = {}
    for job, row in done:
        if row.references:
            first.setdefault(job.arm.name, (job, row))
    measures = _measures(values for _, row in first.values() for values in row.references.values())
    return pd.DataFrame(
        {**job.arm.levels, "reference": name, **{measure: values.get(measure) for measure in measures}}
        for job, row in first.values()
        for name, values in row.references.items()
    )


def documents_of(directory: StudyDir, done: Iterable[tuple[Job, Row]]) -> pyarrow.Table | None:
    """Return the sums per document of all jobs that have some; None where none has."""
    import pyarrow

    tables = list(_documents(directory, done))
    return pyarrow.concat_tables(tables, promote_options="default").combine_chunks() if tables else None


class Tables(NamedTuple):
    """The tables of a study; there are no documents where no job completed."""

    results: pd.DataFrame
    references: pd.DataFrame
    documents: pyarrow.Table | None


def write_tables(directory: StudyDir, done: Sequence[tuple[Job, Row]], rates: Mapping[str, float]) -> Tables:
    """Write all tables into the study's directory, each file atomically; return them."""
    tables = Tables(results_of(directory, done, rates), references_of(done), documents_of(directory, done))
    for name, frame in (("results", tables.results), ("references", tables.references)):
        write_atomically(directory.path / f"{name}.csv", frame.to_csv(index=False))
        write_atomically(directory.path / f"{name}.parquet", frame.to_parquet(index=False))
    if tables.documents is not None:
        write_atomically(directory.path / "documents.parquet", as_parquet(tables.documents))
    return tables


def as_parquet(table: pyarrow.Table) -> bytes:
    """Return a table as the content of a parquet file."""
    import pyarrow
    from pyarrow import parquet

    contents = pyarrow.BufferOutputStream()
    parquet.write_table(table, contents)
    data: bytes = contents.getvalue().to_pybytes()
    return data


def _measures(found: Iterable[Numbers]) -> list[str]:
    """Return the names in rows' values: NAME and validation_NAME of each measure in its order, then those of probes."""
    present = dict.fromkeys(name for values in found for name in values)
    known = [prefix + name for name in MEASURES for prefix in ("", VALIDATION)]
    return [*(name for name in known if name in present), *sorted(present.keys() - set(known))]


def _trials(jobs: Iterable[Job]) -> Mapping[str, int]:
    """Return arm -> how many trials of the searched keys it had."""
    trials: dict[str, set[Any]] = defaultdict(set)
    for job in jobs:
        if job.kind == "search":
            trials[job.arm.name].add(tuple(sorted(job.trial.items())))
    return defaultdict(int, {arm: len(tried) for arm, tried in trials.items()})


def _shown(values: Numbers, name: str, kind: str) -> float | None:
    return None if kind == "search" and not name.startswith(VALIDATION) else values.get(name)


def _documents(directory: StudyDir, done: Iterable[tuple[Job, Row]]) -> Iterator[pyarrow.Table]:
    import pyarrow
    from pyarrow import compute, parquet

    for job, row in done:
        if not (file := directory.documents(row.id)).exists():
            continue
        try:
            table = parquet.read_table(file)
        except (OSError, ValueError) as error:  # pyarrow's errors are among them
            raise DamageError(file, NO_TABLE, AGAIN) from error
        if job.kind == "search":
            table = table.filter(compute.equal(table["half"], "validation"))
        facts = {**job.arm.levels, "seed": job.seed, "kind": job.kind, "id": row.id}
        columns = {name: pyarrow.repeat(value, table.num_rows) for name, value in facts.items()}
        yield pyarrow.table(columns | dict(zip(table.column_names, table.columns, strict=True)))
