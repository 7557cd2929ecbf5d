"""The directory of a study, which holds all that is known about it.

    study.json        the study: where its file is, the overrides, its arms, search, metrics, contrasts
    study.lock.json   neoplug's version and the contents of models, data and plugin files
    ledger.jsonl      a line for each job that is done
    jobs/ID.json      a job that is handed out, with its resolved recipe; removed once its line is in the ledger
    locks/ID.json     lock.json of the run of a job that ended, which replays it
    runs/ID/          run directories, which `keep` may remove once the line is in the ledger
    documents/        ID.parquet: the sums per held-out document of a job
    results.csv ...   the tables (`neoplug.studies.tables`)
    status.json       what the study does, for `--status`
    logs/             what workers print, and the logs of runs that failed
    .lock             locked by the process that runs the study

The ledger decides what is done; nothing else has to survive a killed process.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neoplug.environment.info import version_of
from neoplug.errors import UsageError
from neoplug.files import exclusive_lock, read_json, write_atomically
from neoplug.recipe import ResolvedRecipe
from neoplug.recipe.loading import resolve
from neoplug.recipe.source import from_values
from neoplug.registry.consent import Consent
from neoplug.runs.directory import as_json
from neoplug.studies.ledger import Ledger

STUDY, SUMMARY = "study.json", "summary.json"
AGAIN = "start the study again, which writes it again"  # what to do about a damaged file
NO_TABLE = "is not the table that neoplug wrote"


@dataclass(frozen=True)
class StudyDir:
    """The directory of a study, which may not exist yet."""

    path: Path

    @staticmethod
    def is_study(path: Path | str) -> bool:
        """Return whether `path` is the directory of a study."""
        return Path(path, STUDY).is_file()

    @classmethod
    def open(cls, path: Path | str) -> "StudyDir":
        """Return the directory of an earlier study. Raises UsageError where `path` is none."""
        if not cls.is_study(path):
            raise UsageError(f"{path} is no directory of a study: it has no {STUDY}\nfix: name one with --output DIR")
        return cls(Path(path))

    @classmethod
    def create(cls, path: Path | str) -> "StudyDir":
        """Return the directory `path`, created where it is absent. Raises UsageError where something else is there."""
        target = Path(path)
        if target.exists() and not cls.is_study(target) and not _is_empty(target):
            what = f"{path} exists and is no study: it has no {STUDY}"
            raise UsageError(f"{what}\nwhy: nothing is overwritten\nfix: choose another --output")
        target.mkdir(parents=True, exist_ok=True)
        return cls(target.absolute())

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the study against other processes while this context lasts. Raises UsageError where it is locked."""
        try:
            with exclusive_lock(self.path / ".lock"):
                yield
        except BlockingIOError as error:
            raise UsageError(
                f"another process is at work on {self.path}\nwhy: both would hand out the same jobs\n"
                f"fix: wait for it or stop it; `neoplug study {self.path} --status` says what it does"
            ) from error

    @property
    def is_held(self) -> bool:
        """Whether a process is at work on the study."""
        if not (self.path / ".lock").exists():
            return False
        with suppress(UsageError), self.held():
            return False
        return True

    @property
    def ledger(self) -> Ledger:
        """The ledger, not read yet."""
        return Ledger(self.path / "ledger.jsonl")

    @property
    def status_file(self) -> Path:
        """The file for `--status`."""
        return self.path / "status.json"

    def run(self, job: str) -> Path:
        """Return the run directory of a job."""
        return self.path / "runs" / job

    def documents(self, job: str) -> Path:
        """Return the file of a job's sums per document."""
        return self.path / "documents" / f"{job}.parquet"

    def lock(self, job: str) -> Path:
        """Return the file of the lock of a job's run."""
        return self.path / "locks" / f"{job}.json"

    def job(self, job: str) -> Path:
        """Return the file of a job that is handed out."""
        return self.path / "jobs" / f"{job}.json"

    def write_lock(self, contents: Mapping[str, Any]) -> None:
        """Write study.lock.json: neoplug's version and what identifies the contents of models, data and files."""
        lock = {"format": 1, "version": version_of("neoplug"), "contents": contents}
        write_atomically(self.path / "study.lock.json", as_json(lock))

    def hand_out(self, facts: Mapping[str, Any]) -> None:
        """Write the file of a job: `Job.as_dict`, the name of the `study`, and the resolved `recipe`."""
        write_atomically(self.job(facts["id"]), json.dumps(facts) + "\n")

    def facts(self, job: str) -> dict[str, Any]:
        """Return what `hand_out` wrote. Raises UsageError where there is no such job."""
        if not self.job(job).is_file():
            raise UsageError(
                f"{self.path} has handed out no job {job}\n"
                f"fix: `neoplug study {self.path}` lists the jobs that are to be run, where its executor is `print`"
            )
        return read_json(self.job(job), "start the study again, which writes it again")

    def recipe(self, job: str) -> ResolvedRecipe:
        """Return the recipe of a handed-out job; of the code that it names, what the user trusts may run."""
        file = self.job(job)
        tree = from_values(self.facts(job)["recipe"], str(file), folder=file.parent)
        return resolve(tree, job, Consent())

    def take_all_back(self) -> None:
        """Remove all that `hand_out` wrote, with the locks of the jobs. No worker is left."""
        shutil.rmtree(self.path / "jobs", ignore_errors=True)

    def take_back(self, job: str) -> None:
        """Remove the file of a job that is done."""
        self.job(job).unlink(missing_ok=True)


def _is_empty(path: Path) -> bool:
    """Return whether a path is a folder that holds at most hidden files, such as the lock of a killed process."""
    return path.is_dir() and all(entry.name.startswith(".") for entry in path.iterdir())
