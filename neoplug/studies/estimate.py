"""What a study costs before it runs: jobs, hours, memory and disk; by plans, and a run of a few steps."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from neoplug import recipe as recipes
from neoplug.environment.memory import IMPORTS
from neoplug.errors import UsageError
from neoplug.files import write_atomically
from neoplug.runs.directory import RunDir, as_yaml
from neoplug.runs.execute import execute
from neoplug.runs.plan import plan
from neoplug.runs.progress import Silent
from neoplug.studies.arms import Arm
from neoplug.studies.directory import StudyDir
from neoplug.studies.executors.local import devices
from neoplug.studies.jobs import Identities
from neoplug.studies.ledger import Row
from neoplug.studies.search import Agenda, agenda, largest_agenda
from neoplug.studies.study import Study, Trial

STEPS = 3  # of the measured run; the first is not counted


@dataclass(frozen=True)
class Estimate:
    """What a study costs.

    jobs          search, extension (at most) and test -> number of jobs
    done          those that the ledger has already
    run_seconds   arm -> seconds of one run
    measured_on   what the seconds were measured on
    hours         of all jobs that are left, extensions included
    memory_bytes  arm -> of one run, by the formula of `neoplug plan --quick`
    disk_bytes    of all run folders that stay, and of those at work
    workers       that run at the same time; 1 where this is not known
    """

    jobs: Mapping[str, int]
    done: int
    run_seconds: Mapping[str, float]
    measured_on: str
    hours: float
    memory_bytes: Mapping[str, int]
    disk_bytes: int
    workers: int


def estimate(study: Study, folder: Path) -> Estimate:
    """Return what a study costs, of which a part may be done in `folder`. Raises RecipeError where it cannot run."""
    identities = Identities(study)
    ledger = StudyDir(folder).ledger
    ledger.refresh()
    wanted = agenda(study, ledger.rows, identities)
    done = [ledger.rows[job.id] for job in wanted.jobs if job.id in ledger.rows]
    plans = {arm.name: plan(study.resolve(arm, _trial(wanted, arm), study.seeds[0]), quick=True) for arm in study.arms}
    search, extension, test = largest_agenda(study)
    seconds, measured_on = _seconds(study, wanted, plans, done)
    kind, options = study.executor
    workers = (options.get("workers") or len(devices())) if kind == "local" else 1
    left = search + extension + test - len(done)
    each = {arm: planned["disk_bytes"]["total"] for arm, planned in plans.items()}
    kept = {"none": 0, "best": sum(each.values()), "all": round(fmean(each.values()) * (search + extension + test))}
    return Estimate(
        jobs={"search": search, "extension": extension, "test": test},
        done=len(done),
        run_seconds=seconds,
        measured_on=measured_on,
        hours=left * fmean(seconds.values()) / workers / 3600,
        memory_bytes={arm: IMPORTS + planned["memory_bytes"]["total"] for arm, planned in plans.items()},
        disk_bytes=kept[study.keep] + workers * max(each.values()),
        workers=workers,
    )


def validate_fits(study: Study, found: Estimate, folder: Path) -> None:
    """Refuse a study that does not fit this machine, where its runs are to run here. Raises UsageError."""
    lines = []
    if study.executor[0] == "local":
        room = max(device.memory_bytes for device in devices())
        lines += [
            f"a run of {arm} needs about {needed / 1e9:,.1f} GB of memory, and the device has {room / 1e9:,.1f} GB"
            for arm, needed in found.memory_bytes.items()
            if needed > room
        ]
    parent = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if found.disk_bytes > (free := shutil.disk_usage(parent).free):
        lines.append(f"{found.disk_bytes / 1e9:,.1f} GB are written, and {free / 1e9:,.1f} GB are free in {parent}")
    if lines:
        fix = "take smaller models or batches; or `keep: none`, which keeps no run folders; or another --output"
        raise UsageError("\n".join([f"the study {study.name} does not fit this machine", *lines, f"fix: {fix}"]))


def _trial(wanted: Agenda, arm: Arm) -> Trial:
    """Return one trial of an arm."""
    return next(iter(wanted.trials.get(arm.name, ())), {})


def _seconds(
    study: Study, wanted: Agenda, plans: Mapping[str, Mapping[str, Any]], done: list[Row]
) -> tuple[dict[str, float], str]:
    """Return arm -> seconds of a run, and what they were measured on: runs in the ledger, else a few steps."""
    known = [row.seconds for row in done if row.seconds]
    if known:
        return dict.fromkeys(plans, fmean(known)), f"{len(known)} runs"
    first = study.arms[0]
    values = study.resolve(first, _trial(wanted, first), study.seeds[0]).resolved()
    values["train"] = {key: value for key, value in values["train"].items() if key != "num_train_epochs"}
    values["train"] |= {"max_steps": STEPS}
    with tempfile.TemporaryDirectory() as folder:
        write_atomically(Path(folder, "recipe.yaml"), as_yaml(values))
        result = execute(recipes.load(Path(folder, "recipe.yaml")), Path(folder, "run"), False, Silent())
        steps = [line["seconds"] for line in RunDir(Path(folder, "run")).metrics.read()]
    around, step = result["seconds"] - sum(steps), fmean(steps[1:] or steps)
    seconds = {arm: around + step * planned["steps"] for arm, planned in plans.items()}
    return seconds, f"{len(steps)} steps of {first.name}"
