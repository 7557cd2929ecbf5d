"""Checks of `evaluate`: a metric for the best checkpoint that exists, is measured, and has a direction."""

import re
from collections.abc import Iterator

from neoplug.errors import Problem, did_you_mean
from neoplug.recipe.schema import Evaluate, Recipe
from neoplug.registry.measures import RANKING


def plain(metric: str) -> str:
    """Return a metric's name without the folder of a probe's file: it is the same from wherever the recipe is run."""
    return re.sub(r"^probes\..*/", "probes.", metric)


def metric_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yield the mistakes in `evaluate`: a missing metric, an unknown metric, or one that is never measured."""
    section, metric = recipe.evaluate, recipe.evaluate.metric_for_best_model
    if metric is None:
        given = ("load_best_model_at_end", "early_stopping_patience", "early_stopping_threshold", "greater_is_better")
        default = Evaluate()
        for key in (key for key in given if getattr(section, key) != getattr(default, key)):
            fix = "name one: evaluate.metric_for_best_model"
            yield Problem(f"`{key}` needs a metric", "it tells which evaluation is the best", fix, ("evaluate", key))
        return
    path = ("evaluate", "metric_for_best_model")
    if section.eval_steps is None:
        why = "without it the student is measured before and after training only"
        yield Problem("`metric_for_best_model` needs `eval_steps`", why, "say every how many steps to evaluate", path)
    if metric in RANKING and RANKING[metric].needs_teacher and recipe.teacher is None:
        yield Problem(
            f"`{metric}` needs a teacher, but the recipe has none", fix="add `teacher: {model: ...}`", path=path
        )
    if metric in RANKING:
        return
    probe = next((name for name in recipe.probes if plain(metric).startswith(plain(f"probes.{name}."))), None)
    if probe is None:
        known = [*RANKING, *(f"probes.{name}." for name in recipe.probes)]
        fix = f"choose one of {', '.join(RANKING)}, or a number of a probe: probes.NAME.KEY"
        yield Problem(f"nothing measures `{metric}`{did_you_mean(metric, known)}", fix=fix, path=path)
    elif section.greater_is_better is None:
        fix = "say `greater_is_better: true` or `false`"
        yield Problem(f"`{metric}` may be better when greater or when smaller", "only its probe knows", fix, path)
