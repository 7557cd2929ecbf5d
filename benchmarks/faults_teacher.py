"""Damaged files of a teacher's cache: each file, in each way, under each command that may read it."""

import random
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from damage import WAYS
from faults_command import Answer
from faults_damage import judged
from faults_lab import Lab, Result, facts, tree

TITLE = "damaged files of a teacher's cache"
PROMISE = "computed again, or named with file and remedy, or not needed: never a traceback or another result"
QUICK = 12
STATE = "teacher"  # of the lab: a cache, a run that used it, and its folder for another machine
KIND = "teacher.cache={states: {dtype: float32}}"
FOLDER = "teacher.cache={stored: {path: CASE/stored}}"
COMMANDS = {
    "cache": ("cache", "RECIPE", KIND),
    "run": ("run", "RECIPE", KIND, "--output", "CASE/out"),
    "eval": ("eval", "CASE/finished", "RECIPE", KIND, "--json"),
    "run without the model": ("run", "RECIPE", "teacher.model=null", FOLDER, "--output", "CASE/out"),
}
PARTS = ("home", "finished", "stored")
Case = tuple[str, str, str]  # file, way, command


def cases(lab: Lab) -> Sequence[Case]:
    """Return all cases in a random order: files of the folder only under the command that names it."""
    _build(lab)
    files = [name for name in tree(lab.folder / STATE) if name.startswith(("home/teachers/", "stored/"))]
    found = [
        (file, way, command)
        for file in files
        for way in WAYS
        for command in COMMANDS
        if not file.endswith(".lock") and file.startswith("stored") == (command == "run without the model")
    ]
    random.Random(1).shuffle(found)
    return found


def attempt(lab: Lab, case: Case) -> Result:
    """Damage a file, give the command, and compare its answer with that of the healthy state."""
    name, way, command = case
    expected = _healthy(lab, command)
    with lab.copy(*PARTS, of=STATE) as folder:
        WAYS[way](folder / name)
        found = _command(lab, folder, command)
        after = {} if found.code else _answered(folder, command, found)
        return judged(f"{name} {way}, {command}", folder / name, found, after == expected)


def _build(lab: Lab) -> None:
    state = lab.folder / STATE
    if state.exists():
        return
    shutil.copytree(lab.folder / "state" / "home", state / "home")
    for words in (("cache", "--output", state / "stored"), ("run", "--output", state / "finished")):
        answered = lab.command(state, words[0], lab.recipe, KIND, *words[1:])
        if answered.code:
            raise RuntimeError(answered.err)


def _command(lab: Lab, folder: Path, command: str) -> Answer:
    words = [word.replace("CASE", str(folder)).replace("RECIPE", str(lab.recipe)) for word in COMMANDS[command]]
    return lab.command(folder, *words)


def _answered(folder: Path, command: str, found: Answer) -> dict[str, Any]:
    """Return the result of a command, as it is compared: of `cache` all files, which are as they were."""
    if command == "cache":
        return tree(folder / "home" / "teachers")
    if command == "eval":
        return {"out": found.out.replace(str(folder), "")}
    return facts(folder / "out")


@cache
def _healthy(lab: Lab, command: str) -> dict[str, Any]:
    with lab.copy(*PARTS, of=STATE) as folder:
        return _answered(folder, command, _command(lab, folder, command))
