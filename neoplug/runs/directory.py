"""The run directory: recipe, lock, metrics, result, checkpoints and trained weights of a run.

    recipe.yaml      the resolved recipe, which can be run again
    lock.json        versions, hashes of models, data and in-recipe plugin files, seed, hardware
    metrics.jsonl    a line for each optimizer step
    result.json      how the run ended, and what it measured
    evaluation/      NAME.parquet: the sums per held-out document of each evaluation (`neoplug.evaluation.evaluate`)
    contents.json    size and hash of each of these files, and of the saved student (`neoplug.files.contents`)
    adapter/ student/ model/ checkpoints/step-N/ log.txt
    .lock            locked by the process that runs; removed when it ends

It is created atomically with recipe and lock in it: a folder without them is not a run directory.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from neoplug.errors import DamageError, UsageError
from neoplug.errors.text import has_credential
from neoplug.files import exclusive_lock, folder_atomically, read_json, remove_abandoned, write_atomically
from neoplug.files.atomic import too_long
from neoplug.files.contents import RECORD, damage, record, recorded
from neoplug.runs.global_batch import GlobalBatch
from neoplug.runs.metrics_file import MetricsFile, finite
from neoplug.runs.result import RunResult
from neoplug.runs.run_files import (
    RESTORE,
    SAVED_AGAIN,
    read_lock,
    read_recipe,
    validate_steps,
)

logger = logging.getLogger(__name__)

OF_TRACKERS = ("tensorboard", "mlflow", "wandb", "trackers")  # folders that trackers write
# What a run writes before its first step.
BEFORE_TRAINING = {
    *("recipe.yaml", "lock.json", "contents.json", "result.json", "metrics.jsonl", "log.txt", ".lock"),
    *("evaluation", "checkpoints", *OF_TRACKERS),
}

REQUIRED = ("recipe.yaml", "lock.json")  # in each run directory
SAVED = ("result.json", "adapter", "student", "model")  # written, or written again, when a run ends

if TYPE_CHECKING:
    import pyarrow


def default_output(name: str) -> Path:
    """Return runs/NAME-DATE-TIME in the current folder, with a number appended where that exists."""
    stem = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    names = chain([stem], (f"{stem}-{number}" for number in count(2)))
    return next(path for path in map(Path("runs").joinpath, names) if not path.exists())


def chosen_output(output: Path | str | None, output_dir: str | None, name: str, resume: bool) -> Path:
    """Return where a run is written: `output`, else the recipe's `output_dir`, else a new folder under runs/.

    Raises:
        UsageError: `resume` is True, or torchrun may start the run again, and no directory is given; or the directory's
            name holds a credential.
    """
    chosen = output or output_dir
    if chosen and has_credential(str(chosen)):
        raise UsageError(f"{chosen} holds a password or an access token\nfix: name a local folder without it")
    if not chosen and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        raise UsageError(
            "torchrun is to start this run again where a process fails (--max-restarts), and would not find it\n"
            "fix: name its directory with --output DIR"
        )
    if resume and not chosen:
        raise UsageError("--resume needs to know which run\nfix: name its directory with --output DIR")
    return Path(chosen) if chosen else default_output(name)


@dataclass(frozen=True)
class RunDir:
    """A run directory that exists."""

    path: Path

    @classmethod
    def create(cls, path: Path | str, resolved: Mapping[str, Any], lock: Mapping[str, Any]) -> RunDir:
        """Create the directory atomically, with recipe and lock in it.

        Raises:
            UsageError: `path` exists; a run is never overwritten.
        """
        target = Path(path)
        validate_output_path(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        if cls.is_run(target):
            cls(target).remove()  # it is reusable
        elif target.is_dir():
            target.rmdir()  # it is empty
        try:
            with folder_atomically(target) as folder:
                write_atomically(folder / "recipe.yaml", as_yaml(resolved))
                write_atomically(folder / "lock.json", as_json(lock))
                record(folder, *REQUIRED)
        except OSError as error:
            if target.exists():  # another process created it in the meantime
                raise path_exists_error(target) from error
            raise
        return cls(target)

    @classmethod
    def open(cls, path: Path | str) -> RunDir:
        """Open the directory of an earlier run.

        Raises:
            UsageError: `path` is no run directory.
        """
        target = Path(path)
        if not cls.is_run(target):
            what = f"it has no {_absent(target)}" if target.exists() else "nothing is there"
            raise UsageError(f"{target} is no run directory: {what}\nfix: name a folder that `neoplug run` wrote")
        return cls(target)

    @classmethod
    def open_finished(cls, path: Path | str) -> RunDir:
        """Open the directory of a finished run, its recipe, lock, result and student verified.

        Raises:
            UsageError: `path` is no run directory, or the run is not finished.
            DamageError: a file is damaged.
        """
        directory = cls.open(path)
        directory.verify(*REQUIRED, *SAVED)
        if not directory.is_finished:
            raise UsageError(
                f"{path} is not finished, so there is no student\n"
                "fix: continue it with `neoplug run RECIPE --output RUN --resume`"
            )
        return directory

    def verify(self, *parts: str) -> None:
        """Compare files, or folders of files, with what the run recorded when it wrote them.

        Raises:
            DamageError: a file is damaged.
        """
        if not (self.path / RECORD).exists():
            logger.warning("%s has no %s: its files are not verified", self.path, RECORD)
        elif found := damage(self.path, *parts):
            name = found.partition(" ")[0]
            top = name.partition("/")[0]
            fix = SAVED_AGAIN.format(self.path / top) if top in SAVED else RESTORE
            raise DamageError(self.path / name, found.removeprefix(f"{name} "), fix)

    @property
    def is_recorded(self) -> bool:
        """Whether the contents of a finished run are recorded."""
        return (self.path / RECORD).is_file() and "result.json" in recorded(self.path)

    def continue_from(self, step: int, metrics_sha256: str | None) -> None:
        """Remove what a killed process left, and the metrics of later steps than `step`.

        Raises:
            DamageError: metrics of steps up to `step` are lost, or have another hash.
        """
        validate_steps(self.metrics.path, step, metrics_sha256, self.checkpoints)
        remove_abandoned(self.path)
        self.metrics.cut(step)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the run against other processes while this context lasts.

        Raises:
            UsageError: another process holds the lock.
        """
        with ExitStack() as lock:
            try:
                lock.enter_context(exclusive_lock(self.path / ".lock"))
            except BlockingIOError as error:
                raise UsageError(
                    f"another process is at work on {self.path}\n"
                    "why: both would write to the same files\nfix: wait for it or stop it, then resume with --resume"
                ) from error
            yield

    @staticmethod
    def is_run(path: Path | str) -> bool:
        """Return whether `path` is a run directory."""
        return not _absent(Path(path))

    @property
    def is_reusable(self) -> bool:
        """Whether the run failed before its first step, and the directory holds nothing but what such a run writes."""
        result = self.result
        if result is None or result.status != "failed" or any(self.checkpoints.glob("*")) or self.metrics.read():
            return False
        return {entry.name for entry in self.path.iterdir()} <= BEFORE_TRAINING

    def remove(self) -> None:
        """Remove a reusable directory.

        Raises:
            UsageError: another process holds its lock.
        """
        with self.held():
            shutil.rmtree(self.path)

    @property
    def resolved(self) -> dict[str, Any]:
        """The recipe that the run was started with."""
        return read_recipe(self.path / "recipe.yaml")

    @property
    def lock(self) -> dict[str, Any]:
        """The lock of the run, as `lock_record` made it; of an older run, `recipe` is that of recipe.yaml."""
        lock = read_lock(self.path / "lock.json")
        return lock if "recipe" in lock else {"recipe": self.resolved, **lock}

    @property
    def global_batch(self) -> GlobalBatch | None:
        """How the rows of a step were dealt when the run was started; None where its lock lacks the processes."""
        train = self.resolved["train"]
        sizes = {name: train[name] for name in ("per_device_train_batch_size", "gradient_accumulation_steps")}
        computation = self.lock.get("computation")
        return computation and GlobalBatch(ranks=computation["ranks"], **sizes)

    @property
    def chat_template_date(self) -> str | None:
        """The date that the run's chat templates read; None where they read none."""
        day: str | None = self.lock["data"].get("chat_template_date")
        return day

    @property
    def metrics(self) -> MetricsFile:
        """The lines of metrics.jsonl."""
        return MetricsFile(self.path / "metrics.jsonl")

    @property
    def result(self) -> RunResult | None:
        """The content of result.json; None while there is none.

        Raises:
            DamageError: the file does not hold a result.
        """
        file = self.path / "result.json"
        fix = SAVED_AGAIN.format(file)
        return RunResult.read(read_json(file, fix), file) if file.exists() else None

    def write_result(self, result: RunResult) -> None:
        """Write result.json atomically; then record the contents of a finished run, but for its card."""
        write_atomically(self.path / "result.json", as_json(result.as_dict()))
        if result.status == "completed":
            record(self.path, "metrics.jsonl", *SAVED, without=("README.md",))

    @property
    def is_finished(self) -> bool:
        """Whether the run trained to its end and saved the student.

        A run that was killed after it saved the student and before it wrote result.json is finished too.
        """
        saved = self.adapter.is_dir() or self.model.is_dir()
        return saved and ((result := self.result) is None or result.status == "completed")

    def write_evaluation(self, name: str, documents: pyarrow.Table) -> None:
        """Write evaluation/NAME.parquet atomically; equal tables give equal files.

        name       before, after, teacher or step-N
        documents  sums per document; `neoplug.evaluation.evaluate` has the schema
        """
        import pyarrow
        from pyarrow import parquet

        contents = pyarrow.BufferOutputStream()
        parquet.write_table(documents, contents)
        write_atomically(self.path / "evaluation" / f"{name}.parquet", contents.getvalue().to_pybytes())
        record(self.path, f"evaluation/{name}.parquet")

    @property
    def adapter(self) -> Path:
        """The folder of the trained adapter."""
        return self.path / "adapter"

    @property
    def student(self) -> Path:
        """The folder of the adapter's base; it exists only if preparation or the adapter changed the base."""
        return self.path / "student"

    @property
    def model(self) -> Path:
        """The folder of a model that was trained whole."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints, step-N/."""
        return self.path / "checkpoints"

    @property
    def log(self) -> Path:
        """The log file."""
        return self.path / "log.txt"

    def contents(self) -> list[tuple[str, int]]:
        """Return the name (folders with a slash) and the size in bytes of all that the run wrote."""
        return [
            (entry.name + "/" * entry.is_dir(), sum(_sizes(entry)))
            for entry in sorted(self.path.iterdir(), key=lambda entry: (entry.is_file(), entry.name))
            if not entry.name.startswith(".")
        ]


def validate_output_path(path: Path) -> None:
    """Refuse a path where no run directory can be created; an empty folder and a reusable run are accepted.

    Raises:
        UsageError: the path exists, is too long, or its parent cannot be written to.
    """
    validate_creatable(path)
    is_free = not path.exists() or (path.is_dir() and not any(path.iterdir()))
    if path.is_symlink() or not (is_free or (RunDir.is_run(path) and RunDir(path).is_reusable)):
        raise path_exists_error(path)


def validate_creatable(path: Path) -> None:
    """Refuse a path that is too long, or whose parent cannot be written to. Raises UsageError."""
    if why := too_long(path):
        raise UsageError(f"{path} cannot be created\nwhy: {why}\nfix: choose a shorter --output")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        why = "is no folder" if not parent.is_dir() else "cannot be written"
        raise UsageError(f"{path} cannot be created\nwhy: {parent} {why}\nfix: choose another --output")


def _absent(path: Path) -> str:
    """Return those of recipe.yaml and lock.json that a folder does not have, in words; empty for a run directory."""
    return " and ".join(name for name in REQUIRED if not (path / name).is_file())


def path_exists_error(path: Path) -> UsageError:
    """Return the error for a path that exists."""
    if RunDir.is_run(path):
        return UsageError(
            f"{path} holds a run already\n"
            "why: a run is never overwritten\n"
            "fix: continue it with --resume, or choose another --output"
        )
    what = f"{path} exists and is no run: it has no {_absent(path)}"
    return UsageError(f"{what}\nwhy: nothing is overwritten\nfix: choose another --output")


def _sizes(path: Path) -> Iterator[int]:
    files = path.rglob("*") if path.is_dir() else [path]
    yield from (file.lstat().st_size for file in files if file.is_file())


def as_json(value: Any) -> str:
    """Return the value as the text of a JSON file; infinity and NaN become null."""
    return json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def as_yaml(value: Mapping[str, Any]) -> str:
    """Return a recipe as YAML, its keys in their order."""
    return yaml.dump(dict(value), Dumper=_WithoutAliases, sort_keys=False, allow_unicode=True, width=1000)


class _WithoutAliases(yaml.SafeDumper):
    """Writes a value that occurs twice twice: a recipe with aliases is not read again."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
