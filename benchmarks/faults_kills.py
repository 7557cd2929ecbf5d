"""Kills by file event: the process dies before its n-th change of a file; the command is then given again."""

import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from faults_command import answer, neoplug
from faults_lab import Lab, Result, facts, in_home, tree

TITLE = "kills by file event"
PROMISE = "given again, the command gives the same bits; nothing partial is left"
NUMBER, QUICK = 200, 4
EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")
WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
COMMANDS = {  # and the state that they need; "run" converts the teacher, prunes the student and writes tokens
    "run": ((), ("run", "RECIPE", "--output", "CASE/out", "--resume")),
    "export": (("home", "finished"), ("export", "CASE/finished", "CASE/out")),
    "export --lora": (("home", "finished"), ("export", "CASE/finished", "CASE/out", "--lora")),
}


def cases(lab: Lab) -> Sequence[tuple[str, int]]:
    """Return (command, number of the event) of cases that are spread over all events, in a random order."""
    counts = {name: _events(lab, name) for name in COMMANDS}
    every = [(name, number) for name, count in counts.items() for number in range(1, count + 1)]
    chosen = [every[at * len(every) // NUMBER] for at in range(min(NUMBER, len(every)))]
    random.Random(1).shuffle(chosen)
    return chosen


def attempt(lab: Lab, case: tuple[str, int]) -> Result:
    """Kill a command before an event, give it again, and compare what it wrote with that of an undisturbed one."""
    name, number = case
    state, _ = COMMANDS[name]
    expected = _expected(lab, name)
    with lab.copy(*state) as folder:
        killed = _command(lab, folder, name, lambda event: event == number and os.kill(os.getpid(), signal.SIGKILL))
        again = None
        if not (name != "run" and (folder / "out").exists()):  # an export is whole or absent
            again = _command(lab, folder, name, lambda event: None)
        partial = [str(file.relative_to(folder)) for file in folder.rglob(".*") if file.name.endswith(".partial")]
        found = None if again and again.code else _written(folder, name)
    outcome = "killed" if killed.code == -signal.SIGKILL else "ended before the event"
    failure = ""
    if again and again.code:
        failure = f"{name}, event {number}: exit {again.code}: {again.last_line}"
    elif found != expected:
        failure = f"{name}, event {number}: other results"
    elif partial:
        failure = f"{name}, event {number}: left {', '.join(partial)}"
    return Result(outcome, failure)


def _command(lab: Lab, folder: Path, name: str, watch: Callable[[int], Any]) -> Any:
    words = [word.replace("CASE", str(folder)).replace("RECIPE", str(lab.recipe)) for word in COMMANDS[name][1]]

    def run() -> None:
        _watch(folder, watch)
        neoplug(*words)()

    return answer(in_home(folder / "home", run))


def _watch(folder: Path, watch: Callable[[int], Any]) -> None:
    """Call a function with the number of each change of a file in a folder, before it happens."""
    number = 0
    sync = os.fsync

    def count() -> None:
        nonlocal number
        number += 1
        watch(number)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITE
        if (writes or event in EVENTS) and str(arguments[0]).startswith(str(folder)):
            count()

    def counted_sync(handle: int) -> None:
        count()
        sync(handle)

    sys.addaudithook(audit)
    os.fsync = counted_sync


def _written(folder: Path, name: str) -> dict[str, Any]:
    """Return what a command wrote, as it is compared; for a run also what is in the caches."""
    if name != "run":
        return tree(folder / "out", folder)
    return facts(folder / "out") | {"cached": _weights(folder / "home")}


def _weights(home: Path) -> dict[str, str]:
    return {name: sha for name, sha in tree(home).items() if name.endswith((".safetensors", ".bin"))}


@cache
def _expected(lab: Lab, name: str) -> dict[str, Any]:
    with lab.copy(*COMMANDS[name][0]) as folder:
        _command(lab, folder, name, lambda event: None)
        return _written(folder, name)


@cache
def _events(lab: Lab, name: str) -> int:
    """Return the number of file events of a command."""
    with lab.copy(*COMMANDS[name][0]) as folder:
        log = lab.folder / f"events-{os.getpid()}"
        _command(lab, folder, name, lambda event: log.write_text(str(event)))
        shutil.rmtree(folder / "out")
        return int(log.read_text())
