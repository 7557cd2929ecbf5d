"""Which run folders of a study stay: of finished jobs, as its key `keep` says; of others, all."""

import shutil
from dataclasses import dataclass, field
from typing import Literal

from neoplug.registry.measures import MEASURES
from neoplug.studies.directory import StudyDir
from neoplug.studies.jobs import Job
from neoplug.studies.ledger import Row
from neoplug.studies.tables import VALIDATION


@dataclass(eq=False)
class Keeper:
    """Removes the run folders of jobs whose rows are in the ledger, and which the rule does not keep.

    rule    all: each folder stays; none: none does; best: of each arm that of its best test run
    metric  its value on the validation half says which is best
    """

    directory: StudyDir
    rule: Literal["best", "all", "none"]
    metric: str
    _best: dict[str, Row] = field(default_factory=dict)  # arm -> row

    def apply(self, job: Job, row: Row) -> None:
        """Remove the folder of this row, or of the one that it is better than. Of what failed, the log stays."""
        if self.rule == "all":
            return
        unkept: Row | None = row
        if self.rule == "best" and job.kind == "test" and row.status == "completed":
            kept = self._best.get(job.arm.name)
            if kept is None or self._score(row) > self._score(kept):
                self._best[job.arm.name], unkept = row, kept
        if unkept and unkept.run:
            self._remove(unkept)

    def _score(self, row: Row) -> float:
        """Return a number that is greater for a better run."""
        value = row.values.get(VALIDATION + self.metric)
        if value is None:
            return float("-inf")
        return value if MEASURES[self.metric].greater_is_better else -value

    def _remove(self, row: Row) -> None:
        folder, logs = self.directory.run(row.id), self.directory.path / "logs"
        if row.status != "completed" and (log := folder / "log.txt").exists():
            logs.mkdir(exist_ok=True)
            log.replace(logs / f"{row.id}.txt")
        shutil.rmtree(folder, ignore_errors=True)
