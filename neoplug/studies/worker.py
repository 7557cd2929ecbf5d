"""A worker: runs handed-out jobs in this process, and writes for each its sums per document and its ledger line."""

import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import accumulate
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neoplug.environment.info import version_of
from neoplug.environment.memory import keep_freed
from neoplug.errors import DiskError, DivergenceError, Interrupted, NeoplugError, UsageError, redacted
from neoplug.files import lock, write_atomically
from neoplug.recipe import ResolvedRecipe
from neoplug.registry.measures import RANKING
from neoplug.registry.nested import numbers
from neoplug.studies.directory import StudyDir
from neoplug.studies.halves import half_of
from neoplug.studies.ledger import Ledger, Numbers, Row, Status
from neoplug.studies.tables import VALIDATION, as_parquet

if TYPE_CHECKING:
    import pyarrow

MEASURED = (
    *("trainable_parameters", "total_parameters", "steps", "tokens", "answer_tokens", "seconds"),
    "peak_memory_bytes",
)
POINTS = 120  # of a learning curve
REFERENCES = {"untrained": "before", "teacher": "teacher"}  # name -> evaluation of a run


@dataclass(eq=False)
class Worker:
    """Performs jobs of the study in `folder`; it can be pickled."""

    folder: Path
    ledger: Ledger = field(init=False)

    def __post_init__(self) -> None:
        self.ledger = StudyDir(self.folder).ledger

    def __call__(self, job: str) -> None:
        """Run a job, or go on with its run, and write its ledger line; a job that has one is done.

        Another process that performs the same job is waited for.

        Raises:
            UsageError: the job is not handed out.
            Interrupted: a signal ended the run; the job is not done.
            DiskError: the disk is full.
        """
        keep_freed()
        directory = StudyDir(self.folder)
        with lock(directory.job(job)):
            self.ledger.refresh()
            if job not in self.ledger.rows:
                self.ledger.append(perform(directory, directory.facts(job)))
        directory.take_back(job)


def perform(directory: StudyDir, facts: Mapping[str, Any]) -> Row:
    """Return the row of a job after its run, whose sums per document are written.

    Raises Interrupted and DiskError, after which the job is not done.
    """
    job = facts["id"]
    try:
        result = _run(directory.recipe(job), directory.run(job), facts["study"])
    except (Interrupted, DiskError):
        raise
    except Exception as error:
        status, reason = outcome(error)
        return make_row(directory, facts, status=status, reason=reason)
    values, documents = _measured(directory.run(job), "after")
    values |= numbers({"probes": result["after"].get("probes") or {}})
    if documents is not None:
        write_atomically(directory.documents(job), as_parquet(documents))
    references = {name: _measured(directory.run(job), file)[0] for name, file in REFERENCES.items()}
    wrong = [name for name in RANKING if not isfinite(values.get(name, 0.0))]
    status, reason = ("diverged", f"after training, {wrong[0]} is not finite") if wrong else ("completed", "")
    measured = {key: result[key] for key in MEASURED if key in result} | {"curve": _curve(directory.run(job))}
    references = {name: _finite(found) for name, found in references.items() if found}
    return make_row(
        directory, facts, status=status, reason=reason, values=_finite(values), references=references, **measured
    )


def make_row(directory: StudyDir, facts: Mapping[str, Any], **more: Any) -> Row:
    """Return a row of a job, finished now."""
    job = facts["id"]
    run = directory.run(job)
    common = {
        **{key: facts[key] for key in ("id", "arm", "kind", "seed", "trial")},
        "run": run.relative_to(directory.path).as_posix() if job and run.exists() else "",
        "version": version_of("neoplug"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return Row(**common, **more)


def outcome(error: BaseException) -> tuple[Status, str]:
    """Return the status of a run that raised `error`, and the reason."""
    chain = list(_causes(error))
    reason = redacted(str(error) if isinstance(error, NeoplugError) else f"{type(error).__name__}: {error}")
    if any(isinstance(cause, DivergenceError) for cause in chain):
        return "diverged", reason
    if any(_is_out_of_memory(cause) for cause in chain):
        return "out_of_memory", reason
    return "refused" if isinstance(error, UsageError) else "failed", reason


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def _is_out_of_memory(error: BaseException) -> bool:
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)  # torch on a CPU
    )


def _run(checked: ResolvedRecipe, folder: Path, study: str) -> dict[str, Any]:
    """Run a recipe in `folder`, or go on there; return its result. A run that cannot be continued begins again."""
    from neoplug.runs.execute import execute
    from neoplug.runs.progress import Silent

    is_new = not folder.exists()
    try:
        return execute(checked, folder, True, Silent(), study)
    except UsageError:
        if is_new:
            raise
    shutil.rmtree(folder)
    return execute(checked, folder, True, Silent(), study)


def _measured(run: Path, evaluation: str) -> "tuple[Numbers, pyarrow.Table | None]":
    """Return the measures of an evaluation on each half, and its sums per document; nothing where it is absent."""
    import pyarrow
    from pyarrow import compute, parquet

    from neoplug.evaluation.evaluate import metrics_of

    file = run / "evaluation" / f"{evaluation}.parquet"
    if not file.exists():
        return {}, None
    table = parquet.read_table(file)
    halves = pyarrow.array([half_of(content_hash) for content_hash in table["document"].to_pylist()], pyarrow.string())
    values: Numbers = {}
    for half, prefix in (("test", ""), ("validation", VALIDATION)):
        part = table.filter(compute.equal(halves, half))
        if part.num_rows:
            values |= {f"{prefix}{name}": value for name, value in metrics_of(part).items()}
    return values, table.add_column(0, "half", halves)


def _curve(run: Path) -> dict[str, list[float | None]]:
    """Return the tokens that a run has trained on, and its loss, after steps that are evenly spaced."""
    from neoplug.runs.directory import RunDir

    lines = RunDir(run).metrics.read()
    tokens = accumulate(line["tokens"] for line in lines)
    points = list(zip(tokens, (line["loss"] for line in lines), strict=True))
    thinned = points[:: -(-len(points) // POINTS) or 1]
    return {"tokens": [at for at, _ in thinned], "loss": [loss for _, loss in thinned]}


def _finite(values: Mapping[str, float]) -> Numbers:
    """Return the values without infinity and NaN."""
    return {name: value for name, value in values.items() if isfinite(value)}


def main() -> None:
    """Perform jobs of the study in the folder that the first argument names; see `executors.local`."""
    from neoplug.studies.executors.local import serve

    serve(Worker(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
