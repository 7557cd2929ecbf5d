"""Checks of the metrics that a recipe names: each is measured, and that for the best checkpoint has a direction."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from neoplug.errors import Path as Key
from neoplug.errors import Problem, did_you_mean
from neoplug.recipe.schema import Evaluate, Recipe
from neoplug.registry.measures import MEASURES, RANKING, Measure


def without_folder(metric: str) -> str:
    """Return a metric's name without the folder of the probe's file: the same for relative and absolute paths."""
    return re.sub(r"^probes\..*/", "probes.", metric)


def prefers_greater(metric: str, greater_is_better: bool | None) -> bool:
    """Return whether a greater value of a metric is the better one: as the recipe says, else as the metric does."""
    if greater_is_better is not None:
        return greater_is_better
    return metric not in RANKING or bool(RANKING[metric].greater_is_better)


def metric_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yield the mistakes in metrics that `evaluate` and `reference` name."""
    yield from _ranking_problems(recipe)
    for name in recipe.reference.targets if recipe.reference else ():
        yield from _unmeasured(recipe, name, MEASURES, ("reference", "targets", name))


def _unmeasured(recipe: Recipe, metric: str, measures: Mapping[str, Measure], path: Key) -> Iterator[Problem]:
    """Yield a problem where a run of the recipe does not measure `metric`, which is one of `measures` or of a probe."""
    if metric in measures:
        if measures[metric].needs_teacher and recipe.teacher is None:
            what = f"`{metric}` needs a teacher, but the recipe has none"
            yield Problem(what, fix="add `teacher: {model: ...}`", path=path)
    elif not any(without_folder(metric).startswith(without_folder(f"probes.{name}.")) for name in recipe.probes):
        known = [*measures, *(f"probes.{name}." for name in recipe.probes)]
        fix = f"choose one of {', '.join(measures)}, or a number of a probe: probes.NAME.KEY"
        yield Problem(f"there is no metric `{metric}`{did_you_mean(metric, known)}", fix=fix, path=path)


def _ranking_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yield the mistakes in `evaluate`: a missing metric, one that is never measured, or one without a direction."""
    section, metric = recipe.evaluate, recipe.evaluate.metric_for_best_model
    if metric is None:
        given = ("load_best_model_at_end", "early_stopping_patience", "early_stopping_threshold", "greater_is_better")
        why, fix = "a metric determines the best evaluation", "name one: evaluate.metric_for_best_model"
        for key in given:
            if getattr(section, key) != Evaluate.model_fields[key].default:
                yield Problem(f"`{key}` needs a metric", why, fix, ("evaluate", key))
        return
    path = ("evaluate", "metric_for_best_model")
    if section.eval_steps is None:
        why = "without it the student is measured before and after training only"
        yield Problem("`metric_for_best_model` needs `eval_steps`", why, "set the steps between evaluations", path)
    if problem := ranking_problem(recipe, metric, section.greater_is_better):
        yield replace(problem, path=path)


def ranking_problem(recipe: Recipe, metric: str, greater_is_better: bool | None) -> Problem | None:
    """Return why evaluations of a run cannot be ranked by a metric: it is not measured, or has no direction.

    greater_is_better  None: as the metric says, which one of a probe does not
    """
    if unmeasured := next(_unmeasured(recipe, metric, RANKING, ()), None):
        return unmeasured
    if metric in RANKING or greater_is_better is not None:
        return None
    what, fix = f"`{metric}` may be better when greater or when smaller", "set `greater_is_better` to true or false"
    return Problem(what, "a probe does not declare the direction of its numbers", fix)
