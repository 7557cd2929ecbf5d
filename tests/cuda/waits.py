"""The record of a run on the pretended device: waits, copies and attention calls, by phase of the run and by caller.

A wait is an operation that returns to the host only when the device has done all work before it.
"""

import site
import sys
import sysconfig
import threading
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGES = (*map(Path, site.getsitepackages()), Path(sysconfig.get_path("purelib")))
STANDARD = Path(sysconfig.get_path("stdlib"))
SKIPPED = ("torch", "tests/cuda", "standard library")  # these are called on behalf of others
OURS = ("neoplug", "plugins")
# Functions of neoplug that mark a phase, the inner before the outer, which call them.
PHASES = {
    "flush": "flush",
    "save_checkpoint": "save",
    "evaluate_student": "evaluation",
    "measure_gradient_norms": "gradient norms",
    "calibrate": "calibration",
    "distil": "step",
}


class Event(NamedTuple):
    """What happened: `kind` is wait, copy or attention.

    phase   a value of PHASES, or "outside" of the loop
    caller  package/module.py:line function
    """

    kind: str
    what: str
    phase: str
    caller: str


events: Counter[Event] = Counter()


def record(kind, what):
    """Add an event of the present phase and caller."""
    events[Event(kind, what, phase(), caller())] += 1


def phase():
    """Return the phase of the run: the main thread shows it, since backward runs in a thread of the device."""
    names = {frame.f_code.co_name for frame in stack(main_frame()) if owner(frame) in OURS}
    return next((PHASES[name] for name in PHASES if name in names), "outside")


def caller():
    """Return the innermost caller that is neither torch nor this guard, in this thread or else in the main one."""
    for frame in (*stack(sys._getframe(1)), *stack(main_frame())):
        if owner(frame) not in SKIPPED:
            return f"{place(frame)}:{frame.f_lineno} {frame.f_code.co_name}"
    return "unknown"


def main_frame():
    return sys._current_frames()[threading.main_thread().ident]


def stack(frame):
    while frame is not None:
        yield frame
        frame = frame.f_back


def owner(frame):
    """Return the package that a frame's code belongs to; `plugins` for the built-in ones, `tests/cuda` for this."""
    parts = place(frame).split("/")
    if parts[0].startswith("neoplug_"):
        return "plugins"
    return "/".join(parts[:2]) if parts[0] == "tests" else parts[0]


_places: dict[str, str] = {}


def place(frame):
    """Return the file of a frame's code, relative to where packages are installed or to this repository."""
    file = frame.f_code.co_filename
    if file not in _places:
        _places[file] = _place(Path(file))
    return _places[file]


def _place(file):
    for folder in (*PACKAGES, ROOT):  # packages first: they may lie inside of the other folders
        if file.is_relative_to(folder):
            return file.relative_to(folder).as_posix()
    return "standard library" if file.is_relative_to(STANDARD) or str(file).startswith("<") else file.name
