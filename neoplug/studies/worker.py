"""A worker: runs handed-out jobs in this process, and writes for each sums per document, lock and ledger line."""

import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any

from neoplug.environment.info import version_of
from neoplug.environment.memory import is_out_of_memory, keep_freed
from neoplug.errors import DiskError, DivergenceError, Interrupted, NeoplugError, UsageError, redacted
from neoplug.files import lock, write_atomically
from neoplug.recipe import ResolvedRecipe
from neoplug.registry.measures import RANKING
from neoplug.runs.directory import RunDir, as_json
from neoplug.studies.directory import StudyDir
from neoplug.studies.ledger import Ledger, Row, Status
from neoplug.studies.measuring import measure
from neoplug.studies.tables import as_parquet


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
    """Return the row of a job after its run, whose sums per document and lock are written.

    Raises Interrupted and DiskError, after which the job is not done.
    """
    job = facts["id"]
    try:
        _run(directory.recipe(job), directory.run(job), facts["study"])
    except (Interrupted, DiskError):
        raise
    except Exception as error:
        status, reason = outcome(error)
        return make_row(directory, facts, status=status, reason=reason)
    run = RunDir(directory.run(job))
    measured = measure(run)
    if measured.documents is not None:
        write_atomically(directory.documents(job), as_parquet(measured.documents))
    write_atomically(directory.lock(job), as_json(run.lock))
    wrong = [name for name in RANKING if not isfinite(measured.values.get(name, 0.0))]
    status, reason = ("diverged", f"after training, {wrong[0]} is not finite") if wrong else ("completed", "")
    return make_row(directory, facts, status=status, reason=reason, **measured.fields)


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
    if any(is_out_of_memory(cause) for cause in chain):
        return "out_of_memory", reason
    return "refused" if isinstance(error, UsageError) else "failed", reason


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def _run(checked: ResolvedRecipe, folder: Path, study: str) -> None:
    """Run a recipe in `folder`, or go on there. A run that cannot be continued begins again."""
    from neoplug.runs.execute import execute
    from neoplug.runs.progress import Silent

    is_new = not folder.exists()
    try:
        execute(checked, folder, True, Silent(), study)
    except UsageError:
        if is_new:
            raise
        shutil.rmtree(folder)
        execute(checked, folder, True, Silent(), study)


def main() -> None:
    """Perform jobs of the study in the folder that the first argument names; see `executors.local`."""
    from neoplug.studies.executors.local import serve

    serve(Worker(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
