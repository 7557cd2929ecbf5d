"""Budgets that are equal in trainable parameters: each adapter gets the size at which it has as many as the first."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from neoplug.errors import Problem, RecipeError, UsageError
from neoplug.recipe.tree import Node
from neoplug.registry.dispatch import path_of
from neoplug.runs.plan import plan
from neoplug.studies.arms import Arm
from neoplug.studies.study import Study


def matched(study: Study) -> Study:
    """Return the study as its key `match` asks: every adapter has the size that matches that of the first arm.

    Models are built without weights and the data tokenised, once for arms that differ in neither student nor adapter.

    Raises RecipeError where an adapter has no size to choose, or none comes near.
    """
    if study.match is None:
        return study
    first, *others = study.arms
    wanted = plan(study.resolve(first, {}, study.seeds[0]), quick=True)["parameters"]["trainable"]
    known: dict[str, Mapping[str, Any]] = {}
    return replace(study, arms=(first, *(_matched(study, arm, wanted, known) for arm in others)))


def _matched(study: Study, arm: Arm, wanted: int, known: dict[str, Mapping[str, Any]]) -> Arm:
    checked = study.resolve(arm, {}, study.seeds[0])
    sized = json.dumps([checked.values["student"], checked.values["adapter"]])
    mark = study.tree.mark(("match",))
    if sized not in known:
        try:
            known[sized] = plan(checked, wanted, quick=True)["match"]
        except UsageError as error:
            if isinstance(error, RecipeError):
                raise
            what, *more = str(error).splitlines()
            why = next((line.removeprefix("why: ") for line in more if line.startswith("why: ")), "")
            fix = "leave `match` out, or exclude the arm"
            raise RecipeError([Problem(f"the arm `{arm.name}`: {what}", why, fix, mark=mark)]) from error
    ((section, name),) = checked.plugins.named("add_adapter")
    path = (*path_of(section, name), known[sized]["option"])
    return replace(arm, changes=(*arm.changes, (path, Node(known[sized]["value"], mark, mark, study.file.parent))))
