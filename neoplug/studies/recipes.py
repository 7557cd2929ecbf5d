"""The recipes of a study's arms, checked together: a mistake that several of them have is reported once."""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from neoplug.errors import Problem, RecipeError
from neoplug.recipe import ResolvedRecipe
from neoplug.recipe.metric_checks import without_folder
from neoplug.registry.measures import MEASURES
from neoplug.studies.arms import Arm
from neoplug.studies.study import Study, Trial


def recipe_problems(study: Study, metrics: Collection[str]) -> list[Problem]:
    """Return the mistakes of the recipes of all arms; with the first arm, each value of the search is tried."""
    keys = study.search.keys
    first = {key: searched.values[0] for key, searched in keys.items()}
    found: dict[Problem, Sequence[Arm]] = {}
    known: dict[str, Arm] = {}
    for arm in study.arms:
        for problem in dict.fromkeys(_problems(study, arm, first, metrics, known)):
            found[problem] = [*found.get(problem, ()), arm]
    others = [first | {key: value} for key, searched in keys.items() for value in searched.values[1:]]
    for trial in others:
        found |= {problem: study.arms for problem in _problems(study, study.arms[0], trial) if problem not in found}
    return [_with_arms(problem, arms, study) for problem, arms in found.items()]


def _problems(
    study: Study, arm: Arm, trial: Trial, metrics: Collection[str] = (), known: dict[str, Arm] | None = None
) -> list[Problem]:
    try:
        recipe = study.resolve(arm, trial, study.seeds[0])
    except RecipeError as error:
        return error.problems
    return [*_unmeasured(recipe, metrics), *(_same_recipe(recipe, arm, known) if known is not None else ())]


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


def _with_arms(problem: Problem, arms: Sequence[Arm], study: Study) -> Problem:
    """Return a problem with the arms that have it, unless all of them have it, or its place says so."""
    if len(arms) == len(study.arms) or problem.path[:1] == ("axes",):
        return problem
    for axis, levels in study.axes.items():
        for level in levels:
            if [*arms] == [arm for arm in study.arms if arm.levels[axis] == level]:
                is_there = problem.mark and problem.mark.file == study.tree.root.mark.file
                return problem if is_there else replace(problem, what=f"{problem.what} ({axis}: {level})")
    more = f" and {len(arms) - 1} more" if len(arms) > 1 else ""
    return replace(problem, what=f"{problem.what} (in `{arms[0].name}`{more})")
