"""The keys of a loss that are the core's: `weight`, `schedule` and `calibrate`."""

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError, did_you_mean
from neoplug.recipe.loss_weights import SCHEDULES, Schedule, Weight
from neoplug.registry.options import build
from neoplug.registry.suggestions import NO_NUMBER, instead, show


def read_weight(options: Mapping[str, Any], path: Key) -> tuple[Weight, list[Problem]]:
    """Return what a loss's options at `path` say of its strength, and all mistakes in it."""
    problems: list[Problem] = []
    said: dict[str, Any] = {}
    for key, field, read in _KEYS:
        try:
            if key in options:
                said[field] = read(options[key], (*path, key))
        except RecipeError as error:
            problems += error.problems
    return Weight(**said), problems


def _value(weight: Any, path: Key) -> float:
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        what, why = f"`weight` is {show(weight)}, but must be a number", NO_NUMBER if isinstance(weight, bool) else ""
        raise RecipeError([Problem(what, why, instead(weight, ["a number"], 1.0), path)])
    if not isfinite(weight) or weight < 0:
        raise RecipeError([Problem(f"`weight` is {show(weight)}, but must be finite and at least 0", path=path)])
    return float(weight)


def _schedule(schedule: Any, path: Key) -> Schedule:
    """A name, or a map of one name to its values."""
    if isinstance(schedule, Mapping) and len(schedule) == 1:
        ((name, values),) = schedule.items()
        path, values = (*path, name), {} if values is None else values
    else:
        name, values = schedule, {}
    if not isinstance(name, str) or not isinstance(values, Mapping):
        what = f"`{path[-1]}` is {show(values if isinstance(name, str) else name)}, but must be "
        what += "a map" if isinstance(name, str) else "the name of a schedule, or a map of one name to its values"
        raise RecipeError([Problem(what, fix="write `linear`, or `{linear: {start: 1.0, end: 0.0}}`", path=path)])
    if name not in SCHEDULES:
        what = f"no schedule is named `{name}`{did_you_mean(name, list(SCHEDULES))}"
        raise RecipeError([Problem(what, fix=f"choose one of {', '.join(SCHEDULES)}", path=path)])
    found: Schedule = build(SCHEDULES[name], values, path=path)
    return found


def _calibrate(name: Any, path: Key) -> str:
    if not isinstance(name, str) or not name:
        what = f"`calibrate` is {show(name)}, but must be the name of a loss"
        raise RecipeError([Problem(what, "its gradient is what the weight is measured by", path=path)])
    return name


_KEYS: tuple[tuple[str, str, Callable[[Any, Key], Any]], ...] = (
    ("weight", "value", _value),
    ("schedule", "schedule", _schedule),
    ("calibrate", "calibrate", _calibrate),
)
