"""Conformance tests of trackers, on small runs that have all that a run may record.

from neoplug.testing import check_tracker

def test_mine():
    check_tracker(Mine())

No other machine is reached. A tracker whose library has a server or a database of its own maps in its attribute
`offline` the library's environment variables to values with which it records on this machine alone; `{folder}` in a
value is a temporary folder, and None removes a variable:

    offline: ClassVar = {"MY_LIBRARY_MODE": "local", "MY_LIBRARY_FOLDER": "{folder}"}

Not tested: whether a tracker changes its arguments, which are copies in a run; whether its server answers, since a
tracker that fails ends no run; what it records elsewhere than in files of the run's directory.
"""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from neoplug.errors import NeoplugError
from neoplug.registry.measures import MEASURES
from neoplug.runs.directory import OF_TRACKERS
from neoplug.testing.hooks import answer, global_seeds
from neoplug.testing.loss_examples import hook
from neoplug.testing.offline import without_network
from neoplug.testing.refusals import recipe_with
from neoplug.testing.search import Broken, Kit, NotApplicable, properties_of

Call = tuple[str, dict[str, Any]]  # a hook, and its arguments

NAME = "neoplug-check"  # of the runs that are recorded, also where a tracker has its own database or server
FILES = {"recipe.yaml": "seed: 0\n", "lock.json": "{}\n", "metrics.jsonl": '{"step": 1}\n', "log.txt": "a line\n"}
CONFIG: dict[str, Any] = {"seed": 0, "teacher": {"model": "a/teacher"}, "loss": {"a_loss": {"weight": 1.0}}}
LINE: dict[str, Any] = {
    "step": 1, "tokens": 64, "answer_tokens": 32, "loss": 1.25, "losses": {"a_loss": 1.25}, "learning_rate": 0.1,
    "grad_norm": 0.5, "tokens_per_second": 128.0, "peak_memory_bytes": 2**31, "seconds": 0.5,
}  # fmt: skip
# What a line, an evaluation or a recipe may have -> such a value.
VALUES: dict[str, Any] = {
    "None": None,
    "a text": "two\nlines",
    "no entry": {},
    "maps in maps": {"a": {"b": {"c": 1.0}}},
    "the name of a plugin in a file": {"./plugins/own.py:Own": 1.0},
    "a whole number above 2^53": 2**53 + 1,
    "the largest number": sys.float_info.max,
    "the smallest number": 5e-324,
}
# The same, but for lines, whose numbers are neither listed nor booleans.
OTHERS: dict[str, Any] = {"a list": [1.0, None, "a", {"b": [2]}], "an empty list": [], "a boolean": True}


@dataclass(frozen=True)
class Recording:
    """What a run gives a tracker between opening and closing it.

    config  of the run
    group   of the run, or None
    calls   of `on_log` and `on_measured`, in order
    """

    config: Mapping[str, Any] = field(default_factory=lambda: CONFIG)
    group: str | None = None
    calls: tuple[Call, ...] = ()


def _line(step: int = 1, **more: Any) -> Call:
    return "on_log", {"line": {**LINE, "step": step, **more}}


def _evaluation(step: int = 0, whose: str = "student", **probe: Any) -> Call:
    measured = {name: 1.25 for name, measure in MEASURES.items() if whose == "student" or not measure.needs_teacher}
    return "on_measured", {"step": step, "measured": {**measured, "probes": {"probe": probe}}, "whose": whose}


# What a tracker may not expect, each in a recording that has little else.
SMALL = {
    "a run that fails while it loads its models": Recording(),
    "a run of a study": Recording(group="a study"),
    "an evaluation before training": Recording(calls=(_evaluation(),)),
    "an evaluation of the teacher": Recording(calls=(_evaluation(whose="teacher"),)),
    "a line": Recording(calls=(_line(),)),
    "a line and the evaluation of its step": Recording(calls=(_line(), _evaluation(1))),
    "a line that has more than the one before": Recording(calls=(_line(), _line(2, penalty=1.0))),
    "a line that has less than the one before": Recording(calls=(_line(penalty=1.0), _line(2))),
    **{f"a line with {what}": Recording(calls=(_line(value=value),)) for what, value in VALUES.items()},
    **{
        f"a probe with {what}": Recording(calls=(_evaluation(value=value),))
        for what, value in (VALUES | OTHERS).items()
    },
    **{
        f"a recipe with {what}": Recording({**CONFIG, "probes": {"probe": {"value": value}}})
        for what, value in (VALUES | OTHERS).items()
    },
}
# All of them in one run.
WHOLE = Recording(
    {**CONFIG, "probes": {"probe": VALUES | OTHERS}},
    "a study",
    (
        *(_evaluation(0, whose, **VALUES, **OTHERS) for whose in ("student", "teacher")),
        *(_line(1), _line(2, **VALUES), _line(3)),
        *(_evaluation(3), _line(4), _evaluation(4)),
    ),
)
SHORTEST, SHORT = SMALL["a run that fails while it loads its models"], Recording(calls=(_line(1), _line(2), _line(3)))
MARKS = "metric_of_the_first_run", "402653189"  # in the records of the first of two runs: a name and a step
FIRST = Recording(calls=(_line(int(MARKS[1]), losses={MARKS[0]: 1.25}), _evaluation(int(MARKS[1]))))


def check_tracker(tracker: Any) -> None:
    """Test every property of trackers.

    It records some small runs with the name `neoplug-check`, with the environment variables of the attribute `offline`
    and without a network.

    Raises AssertionError for a property that does not hold, with the smallest run that breaks it.
    """
    TRACKER.hold(tracker, 0)


class TrackerProperties:
    """The properties of trackers: each method without underscore, which raises Broken where it does not hold."""

    def offline(self, tracker: Any) -> None:
        """With the environment variables of its `offline`, if it has any, it connects to no other machine."""
        try:
            _record_alone(tracker, SHORT)
        except NotApplicable as error:
            raise Broken(
                f"{error}: in `offline`, map environment variables to values with which it records on this machine; or "
                "give it a server at localhost"
            ) from error

    def records(self, tracker: Any) -> None:
        """It takes all that a run may give it, without an error and without an answer."""
        try:
            for recording in (SHORTEST, SHORT, WHOLE):
                _record_alone(tracker, recording)
        except Broken as error:
            for name, recording in SMALL.items():
                with _naming(name):
                    _record_alone(tracker, recording)
            raise Broken(f"a run of four steps: {error.what}") from error

    def resumed(self, tracker: Any) -> None:
        """It goes on with the record of a resumed run, which may repeat steps, and removes nothing of it."""
        with _folder() as folder:
            path = _directory(folder)
            _record(replace(tracker), path, SHORT)
            before = _files(path)
            with _naming("a resumed run that fails while it loads its models"):
                _record(replace(tracker), path, SHORTEST)
            after = _files(path)
            for name, content in before.items():
                if len(after.get(name, b"")) < len(content):
                    raise Broken(f"`{name}` has {len(content)} bytes, and {len(after.get(name, b''))} once resumed")
            with _naming("a run that is resumed after step 1 of 3"):
                _record(replace(tracker), path, replace(SHORT, calls=SHORT.calls[1:]))

    def separate(self, tracker: Any) -> None:
        """It does not mix two runs of one process."""
        with _folder() as folder:
            first, second = _directory(folder, "first"), _directory(folder, "second")
            _record(replace(tracker), first, FIRST)
            before = _files(first)
            with _naming("the second of two runs"):
                _record(replace(tracker), second, SHORT)
            if changed := _changed(before, _files(first)):
                raise Broken(f"the second of two runs changes `{changed[0]}` of the first")
            for name, content in _files(second).items():
                for mark in MARKS:
                    if mark.encode() in content:
                        raise Broken(f"`{name}` of the second of two runs has `{mark}` of the first")

    def closed(self, tracker: Any) -> None:
        """It has written everything when it is closed."""
        with _folder() as folder:
            path, plugin = _directory(folder), replace(tracker)
            _record(plugin, path, SHORT)
            before = _files(path)
            del plugin  # a file that is still open is written now
            gc.collect()
            if changed := _changed(before, _files(path)):
                raise Broken(f"`{changed[0]}` is not complete: close the file in `close_tracker`")

    def directory(self, tracker: Any) -> None:
        """In the run's directory, it writes only into a folder of its own."""
        with _folder() as folder:
            path = _directory(folder)
            _record(replace(tracker), path, SHORT)
            own = 'a tracker has a folder of its own in `path / "trackers"`'
            for name in FILES:
                if not (path / name).is_file() or (path / name).read_text(encoding="utf-8") != FILES[name]:
                    raise Broken(f"it changes `{name}`, a file of the run; {own}")
            for entry in sorted([*path.iterdir(), *path.glob("trackers/*")]):
                name = entry.relative_to(path).as_posix()
                if entry.parent == path and name not in {*FILES, *OF_TRACKERS}:
                    raise Broken(f"it writes `{name}` among the files of the run; {own}")
                if entry.parent != path and not entry.is_dir():
                    raise Broken(f"it writes `{name}` among the folders of trackers; {own}")

    def current_folder(self, tracker: Any) -> None:
        """It writes nothing into the current folder: a run may be resumed from another."""
        with _folder() as folder:
            _record(replace(tracker), _directory(folder), SHORT)
            if entries := sorted(entry.name for entry in Path.cwd().iterdir()):
                raise Broken(f"it writes `{entries[0]}` into the current folder; the run's directory is `path`")

    def generators(self, tracker: Any) -> None:
        """It leaves the global generators of random numbers as they are: it has no part in what a run computes."""
        _record_alone(tracker, SHORT)  # libraries may draw when they are first used
        with global_seeds(0):
            before = _generators()
            _record_alone(tracker, SHORT)
            after = _generators()
        for name, state in before.items():
            if state != after[name]:
                raise Broken(f"it draws from the generator of {name}, or seeds it: make one of its own")


def _absent(tracker: Any) -> dict[str, str]:
    """Return all properties with the reason why this tracker cannot be used here, as a package that is missing."""
    with suppress(NeoplugError):
        for problem in answer(tracker, "check", recipe=recipe_with()) or ():
            return dict.fromkeys(TRACKER.properties, problem.what)
    return {}


TRACKER = Kit(
    "tracker",
    {},
    once=properties_of(TrackerProperties()),
    exempt=("current_folder", "offline"),  # where the user's settings say so; where there is no way
    absent=_absent,
)


def _record(plugin: Any, path: Path, recording: Recording) -> None:
    """Record a run in a directory.

    Raises:
        Broken: the plugin raises an error, or answers.
        NotApplicable: it connects to another machine.
        TypeError: it is no tracker.
    """
    if hook(plugin, "on_log") is None and hook(plugin, "on_measured") is None:
        raise TypeError(f"{type(plugin).__name__} has neither `on_log` nor `on_measured`")
    opening = {"path": path, "config": recording.config, "group": recording.group}
    with without_network(getattr(plugin, "offline", {})) as tried:
        try:
            for name, arguments in (("open_tracker", opening), *recording.calls, ("close_tracker", {})):
                answer(plugin, name, **deepcopy(arguments))
                if tried:
                    break
        except NeoplugError as error:
            if not tried:
                raise Broken(error.message().partition("\n")[0]) from error
    if tried:
        raise NotApplicable(f"it connects to {tried[0]}, and a check reaches no other machine")


def _record_alone(tracker: Any, recording: Recording) -> None:
    """Record a run with a new instance, in a directory that is removed."""
    with _folder() as folder:
        _record(replace(tracker), _directory(folder), recording)


@contextmanager
def _folder() -> Iterator[Path]:
    """Yield a folder for run directories, which is removed; the current folder is another, empty one."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder, TemporaryDirectory() as current, chdir(current):
        yield Path(folder).resolve()


def _directory(folder: Path, *below: str) -> Path:
    """Return a new run directory, with the files that are there before training."""
    path = folder.joinpath(*below, NAME)
    path.mkdir(parents=True)
    for name, text in FILES.items():
        (path / name).write_text(text, encoding="utf-8")
    return path


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Put `what` before the message of a property that is broken in the block."""
    try:
        yield
    except Broken as error:
        raise Broken(f"{what}: {error.what}") from error


def _files(path: Path) -> dict[str, bytes]:
    """Return the content of each file below a folder, by its path in it."""
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def _changed(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> list[str]:
    """Return the names of the files that are new, gone or changed."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def _generators() -> dict[str, Any]:
    """Return the states of the global generators by the names of their modules."""
    numpy_state: Any = np.random.get_state()
    return {
        "torch": torch.random.get_rng_state().tolist(),
        "numpy": (numpy_state[1].tolist(), *numpy_state[2:]),
        "random": random.getstate(),
    }
