"""Keys outside of the maps of plugins that name plugins too: each says in transformers' words what a section says."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

from pydantic import ValidationError

from neoplug.errors import Path as Key
from neoplug.errors import Problem
from neoplug.recipe.schema import TRACKERS, Evaluate
from neoplug.recipe.source import relative_place
from neoplug.recipe.tree import Tree
from neoplug.registry import path_of

DEFAULT_SCHEDULE = "cosine"
LR_SCHEDULER_TYPE = ("train", "lr_scheduler_type")
EARLY_STOPPING_PATIENCE = ("evaluate", "early_stopping_patience")
REPORT_TO = ("report_to",)


class Shorthand(NamedTuple):
    """A plugin that a key names, as if `section` had `name: options`; `path` is the key, or that of a default."""

    section: str
    name: str
    options: dict[str, Any]
    path: Key


def shorthands(tree: Tree) -> Iterator[Shorthand]:
    """Yield the plugins that keys of the recipe name, and the schedule of one that names none."""
    if schedule := _schedule(tree):
        yield Shorthand("schedule", schedule, {}, LR_SCHEDULER_TYPE)
    if options := _early_stopping(tree):
        yield Shorthand("stops", "early_stopping", options, EARLY_STOPPING_PATIENCE)
    yield from (Shorthand("trackers", name, {}, REPORT_TO) for name in _trackers(tree))


def named_twice(tree: Tree) -> Iterator[Problem]:
    """Yield a problem for each plugin that a key names, and its section too; two schedules conflict anyway."""
    for section, name, _, path in shorthands(tree):
        if section != "schedule" and (here := tree.key_mark(path)) and (other := tree.key_mark(path_of(section, name))):
            what = f"`{path[-1]}` names `{name}`, which is under `{section}` too ({relative_place(other, here)})"
            yield Problem(what, "", f"keep one; `{'.'.join(map(str, path))}: null` removes this one", path)


def _schedule(tree: Tree) -> str | None:
    """Return the schedule that `lr_scheduler_type` names; the default where the section names none either."""
    name = tree.get(LR_SCHEDULER_TYPE)
    if isinstance(name, str):
        return name
    return None if isinstance(tree.get(("schedule",)), dict) or tree.incomplete else DEFAULT_SCHEDULE


def _early_stopping(tree: Tree) -> dict[str, Any]:
    """Return the options of `early_stopping` by the keys of `evaluate`; none without patience, or without a metric."""
    try:
        section = Evaluate.model_validate(tree.get(("evaluate",)) or {})
    except ValidationError:  # it is reported with the other mistakes of the section
        return {}
    metric, patience = section.metric_for_best_model, section.early_stopping_patience
    if patience is None or metric is None:
        return {}
    options = {"metric": metric, "patience": patience, "greater_is_better": section.greater_is_better}
    return options | {"threshold": section.early_stopping_threshold}


def _trackers(tree: Tree) -> list[str]:
    """Return the trackers that `report_to` names; `all` are those that are installed and not in the section."""
    given = tree.get(REPORT_TO)
    if given == "all":
        return [name for name in TRACKERS if find_spec(name) and tree.get(("trackers", name)) is None]
    named = given if isinstance(given, list) else [given]
    return [name for name in TRACKERS if name in named]  # others are reported with the types of the recipe
