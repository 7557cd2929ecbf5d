"""Execution of a study: begin it in its directory or go on there, from Python and from the command line."""

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neoplug.files import read_json, write_atomically
from neoplug.registry.nested import leaves
from neoplug.runs.directory import as_json
from neoplug.runs.signals import stopping
from neoplug.studies.directory import STUDY, SUMMARY, StudyDir
from neoplug.studies.executors import make_executor
from neoplug.studies.jobs import Identities
from neoplug.studies.matching import matched
from neoplug.studies.scheduler import Scheduler
from neoplug.studies.specification import read
from neoplug.studies.status import Unwatched, Watch
from neoplug.studies.study import Study

if TYPE_CHECKING:
    import pandas as pd

    from neoplug.studies.summary_schema import Summary


@dataclass(frozen=True)
class StudyResult:
    """The tables of a study, read from its directory; `neoplug.studies.tables` has their columns.

    path  of the directory
    left  number of jobs that are not done; 0 unless the executor is `print`
    """

    path: Path
    left: int = 0

    @property
    def results(self) -> "pd.DataFrame":
        """A row for each job."""
        return self._table("results")

    @property
    def references(self) -> "pd.DataFrame":
        """For each arm, the measures of the untrained student and of the teacher."""
        return self._table("references")

    @property
    def documents(self) -> "pd.DataFrame":
        """The sums of each job on each held-out document."""
        return self._table("documents")

    @property
    def summary(self) -> "Summary":
        """What the test runs say about the planned comparisons."""
        from neoplug.studies.summary_schema import Summary

        return Summary.model_validate(read_json(self.path / SUMMARY, "run the study again, which writes it"))

    def _table(self, name: str) -> "pd.DataFrame":
        import pandas as pd

        return pd.read_parquet(self.path / f"{name}.parquet")


def study(
    source: str | Path, *, output: str | Path | None = None, watch: Watch | None = None,
    trust: Sequence[str | Path] = (), **overrides: Any,
) -> StudyResult:  # fmt: skip
    """Run a study, given as a file, by the name of a shipped one, or as a study's directory; return its tables.

    It goes on where an earlier process left it, and runs what is new in it. Keyword arguments override sections of the
    base recipe: `train={"max_steps": 20}`.

    output  the study's directory; by default studies/NAME in the current folder
    watch   receives the progress
    trust   code that may run, as the option `--trust` of the command line names it

    Raises:
        RecipeError: the study or the recipe of an arm is not valid; the message lists all mistakes.
        UsageError: the directory holds something else, or another process is at work on it.
        Interrupted: a signal was received; the same call goes on.
    """
    changes = [f"{'.'.join(map(json.dumps, path))}={json.dumps(value)}" for path, value in leaves(overrides) if path]
    checked = read_study(source, changes, trust)
    return execute_study(checked, chosen_folder(source, output, checked), watch or Unwatched())


def read_study(source: str | Path, overrides: Sequence[str] = (), trust: Sequence[str | Path] = ()) -> Study:
    """Return a study, given as a file, by the name of a shipped one, or as a study's directory; sizes are matched.

    Raises RecipeError.
    """
    if StudyDir.is_study(source):
        known = read_json(Path(source) / STUDY, "name the study file, with --output for the directory")
        source, overrides = known["file"], [*known["overrides"], *overrides]
    return matched(read(source, overrides, trust=trust))


def chosen_folder(source: str | Path, output: str | Path | None, checked: Study) -> Path:
    """Return the directory of a study: `output`, else the one that `source` is, else studies/NAME."""
    return Path(output or (source if StudyDir.is_study(source) else Path("studies", checked.name)))


def execute_study(checked: Study, folder: Path, watch: Watch) -> StudyResult:
    """Run a study in its directory; raises as `study` does."""
    directory = StudyDir.create(folder)
    with directory.held(), stopping() as stop:
        write_atomically(directory.path / STUDY, as_json(checked.as_dict()))
        scheduler = Scheduler(checked, directory, Identities(checked), watch, stop)
        kind, options = checked.executor
        with closing(make_executor(kind, options, directory, scheduler.memory)) as executor, stop.deferring():
            left = scheduler.run(executor).missing
    return StudyResult(directory.path, len(left))
