"""The recipes of a study's arms, checked together: a mistake that several of them have is reported once."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from neoplug.errors import Problem, RecipeError
from neoplug.recipe import ResolvedRecipe
from neoplug.recipe.metric_checks import without_folder
from neoplug.recipe.tree import Tree
from neoplug.registry.measures import MEASURES
from neoplug.studies.arms import Arm

if TYPE_CHECKING:
    from neoplug.studies.specification import Study


def recipe_problems(study: Study, tree: Tree, metrics: Collection[str]) -> list[Problem]:
    """Return the mistakes of the recipes of all arms; with the first arm, each value of the search is tried."""
    keys = study.search.keys
    first = {key: searched.values[0] for key, searched in keys.items()}
    others = [first | {key: value} for key, searched in keys.items() for value in searched.values[1:]]
    tried = [(arm, trial) for arm in study.arms for trial in ([first, *others] if arm is study.arms[0] else [first])]
    found: dict[Problem, list[Arm]] = {}
    known: dict[str, Arm] = {}
    for arm, trial in tried:
        try:
            recipe = study.resolve(arm, trial, study.seeds[0])
            problems = [*_unmeasured(recipe, metrics)]
            if trial is first:
                problems += _same_recipe(recipe, arm, known)
        except RecipeError as error:
            problems = error.problems
        for problem in problems:
            if arm not in (arms := found.setdefault(problem, [])):
                arms.append(arm)
    return [_with_arms(problem, arms, study, tree) for problem, arms in found.items()]


def _unmeasured(recipe: ResolvedRecipe, metrics: Collection[str]) -> Iterator[Problem]:
    """Yield a problem for each metric that a run of this recipe does not measure."""
    probes = [without_folder(f"probes.{name}.") for name in recipe.recipe.probes]
    for name in metrics:
        if name in MEASURES and MEASURES[name].needs_teacher and recipe.recipe.teacher is None:
            yield Problem(f"`{name}` needs a teacher, but the recipe has none", path=("metrics", name))
        elif name.startswith("probes.") and not without_folder(name).startswith(tuple(probes)):
            yield Problem(f"`{name}` is of a probe that the recipe does not have", path=("metrics", name))


def _same_recipe(recipe: ResolvedRecipe, arm: Arm, known: dict[str, Arm]) -> Iterator[Problem]:
    """Yield a problem where another arm has the same recipe; add this one to those known."""
    other = known.setdefault(json.dumps(recipe.resolved(), sort_keys=True), arm)
    if other is not arm:
        what = f"the arms `{other.name}` and `{arm.name}` have the same recipe"
        yield Problem(what, fix="exclude one of them, or change what they differ in", path=("axes",))


def _with_arms(problem: Problem, arms: Sequence[Arm], study: Study, tree: Tree) -> Problem:
    """Return a problem with the arms that have it, unless all of them have it, or its place says so."""
    if len(arms) == len(study.arms) or problem.path[:1] == ("axes",):
        return problem
    for axis, levels in study.axes.items():
        for level in levels:
            if arms == [arm for arm in study.arms if arm.levels[axis] == level]:
                is_there = problem.mark and problem.mark.file == tree.root.mark.file
                return problem if is_there else replace(problem, what=f"{problem.what} ({axis}: {level})")
    more = f" and {len(arms) - 1} more arms" if len(arms) > 1 else ""
    return replace(problem, what=f"{problem.what} (the arm `{arms[0].name}`{more})")
