"""Damaged files: each file of a run and of the caches, in each way, under each command that may read it."""

import random
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from damage import WAYS
from faults_command import Answer
from faults_lab import Lab, Result, facts, tree

from neoplug.files.contents import record

TITLE = "damaged files of runs and caches"
PROMISE = "named with file and remedy, healed, or not needed: never a traceback or another result"
QUICK = 12
COMMANDS = {
    "resume": ("run", "RECIPE", "--output", "CASE/finished", "--resume"),
    "resume after a kill": ("run", "RECIPE", "--output", "CASE/killed", "--resume"),
    "eval": ("eval", "CASE/finished", "RECIPE", "--json"),
    "export": ("export", "CASE/finished", "CASE/out"),
    "export --lora": ("export", "CASE/finished", "CASE/out", "--lora"),
    "push --dry-run": ("push", "CASE/finished", "someone/something", "--dry-run"),
    "next run": ("run", "RECIPE", "--output", "CASE/out"),
}
Case = tuple[str, str, str]  # file, way, command


def cases(lab: Lab) -> Sequence[Case]:
    """Return all cases in a random order: files of the killed run only under its resume."""
    _kill(lab)
    state = lab.folder / "state"
    files = [name for name in tree(state) if not name.endswith(".lock")]
    found = [
        (file, way, command)
        for file in files
        for way in WAYS
        for command in COMMANDS
        if file.startswith("home") or file.startswith("killed") == (command == "resume after a kill")
    ]
    random.Random(1).shuffle(found)
    return found


def attempt(lab: Lab, case: Case) -> Result:
    """Damage a file, give the command, and compare its answer with that of the healthy state."""
    name, way, command = case
    with_metrics = name != "finished/metrics.jsonl"  # `resume` of a finished run does not read them
    expected = _healthy(lab, command, with_metrics)
    with _copy(lab, command) as folder:
        damaged = folder / name
        WAYS[way](damaged)
        found = _command(lab, folder, command)
        after = {} if found.code else _answered(folder, command, found, with_metrics)
    return judged(f"{name} {way}, {command}", damaged, found, after == expected)


def judged(what: str, damaged: Path, found: Answer, is_same: bool) -> Result:
    """Return the result of a command that may have read a damaged file; `is_same`: it did what it does without."""
    if found.is_traceback or found.code not in (0, 2):
        return Result("failed", f"{what}: exit {found.code}: {found.last_line}")
    if not found.code:
        outcome = "healed or not needed"
        return Result(outcome, "" if is_same else f"{what}: another result")
    named = damaged.name in found.err or str(damaged.parent) in found.err
    return Result("named", "" if named and "fix: " in found.err else f"{what}: {found.last_line}")


def _copy(lab: Lab, command: str) -> Any:
    return lab.copy("home", "finished", *(["killed"] if command == "resume after a kill" else []))


def _command(lab: Lab, folder: Path, command: str) -> Answer:
    words = [word.replace("CASE", str(folder)).replace("RECIPE", str(lab.recipe)) for word in COMMANDS[command]]
    return lab.command(folder, *words)


def _answered(folder: Path, command: str, found: Answer, with_metrics: bool) -> dict[str, Any]:
    """Return the result of a command, as it is compared."""
    if command == "next run":
        return facts(folder / "out")
    if command == "resume":
        return facts(folder / "finished", with_metrics=with_metrics)
    if command == "resume after a kill":
        return facts(folder / "killed")
    if command.startswith("export"):
        return tree(folder / "out", folder)
    return {"out": found.out.replace(str(folder), "")}


@cache
def _healthy(lab: Lab, command: str, with_metrics: bool) -> dict[str, Any]:
    with _copy(lab, command) as folder:
        return _answered(folder, command, _command(lab, folder, command), with_metrics)


def _kill(lab: Lab) -> None:
    """Make the state of a run that was killed after its second checkpoint."""
    killed = lab.folder / "state" / "killed"
    if killed.exists():
        return
    shutil.copytree(lab.folder / "state" / "finished", killed)
    for name in ("checkpoints/step-3", "adapter", "student"):
        shutil.rmtree(killed / name)
    for name in ("result.json", "evaluation/after.parquet"):
        (killed / name).unlink()
    record(killed, "result.json", "metrics.jsonl", "adapter", "student", "evaluation/after.parquet")  # absent: no entry
