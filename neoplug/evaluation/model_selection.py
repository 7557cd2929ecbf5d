"""What makes one evaluation better than another: the recipe's metric, and which way is up."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from neoplug.errors import Problem, RunError, did_you_mean
from neoplug.recipe.schema import Evaluate, Recipe

# The ruler's values, and whether a greater one is better. The first need a teacher.
BESIDE_A_TEACHER = {
    "forward_kl": False, "reverse_kl": False, "jsd": False, "top1_agreement": True, "top10_mass_share": True
}  # fmt: skip
GREATER_IS_BETTER = {"cross_entropy": False, "perplexity": False, **BESIDE_A_TEACHER}


@dataclass(frozen=True)
class Standing:
    """How a run stands after some evaluations.

    best    the best one, {step, metric, value}; of equals the first
    waited  how many in a row since were no better by more than the threshold
    """

    best: dict[str, Any]
    waited: int


@dataclass(frozen=True)
class Criterion:
    """What tells evaluations apart; names and meanings are those of transformers' EarlyStoppingCallback."""

    metric: str
    greater: bool
    threshold: float

    def standing(self, evaluations: Sequence[Mapping[str, Any]]) -> Standing:
        """Return how a run stands that measured these, {step, ruler's values, probes}, at least one."""
        best, waited = {"step": evaluations[0]["step"], "metric": self.metric, "value": self.value(evaluations[0])}, 0
        for measured in evaluations[1:]:
            value = self.value(measured)
            gain = (value - best["value"]) * (1 if self.greater else -1)
            waited = 0 if gain > self.threshold else waited + 1
            if gain > 0:
                best = {**best, "step": measured["step"], "value": value}
        return Standing(best, waited)

    def value(self, measured: Mapping[str, Any]) -> float:
        """Return the metric's value.

        Raises:
            RunError: nothing of that name was measured, or it is no finite number.
        """
        numbers = {plain(name): value for name, value in _numbers(measured)}
        found = numbers.get(plain(self.metric))
        if found is None or not isfinite(found):
            raise RunError(
                f"evaluate.metric_for_best_model is {self.metric}, but that measured {found}"
                f"{did_you_mean(self.metric, [*numbers])}\nwhy: the best of several evaluations has the best number\n"
                f"fix: choose one of {', '.join(sorted(numbers))}"
            )
        return float(found)


def plain(metric: str) -> str:
    """Return a metric's name without the folder of a probe's file: it is the same from wherever the recipe is run."""
    return re.sub(r"^probes\..*/", "probes.", metric)


def criterion(section: Evaluate) -> Criterion | None:
    """Return what the recipe tells evaluations apart by, if it does."""
    metric, greater = section.metric_for_best_model, section.greater_is_better
    if metric is None:
        return None
    greater = GREATER_IS_BETTER.get(metric, True) if greater is None else greater
    return Criterion(metric, greater, section.early_stopping_threshold)


def best_problems(recipe: Recipe) -> Iterator[Problem]:
    """Say what of `evaluate` cannot be: no metric, a metric that nobody measures, or that is never measured."""
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
    if metric in BESIDE_A_TEACHER and recipe.teacher is None:
        yield Problem(
            f"`{metric}` needs a teacher, but the recipe has none", fix="add `teacher: {model: ...}`", path=path
        )
    if metric in GREATER_IS_BETTER:
        return
    probe = next((name for name in recipe.probes if plain(metric).startswith(plain(f"probes.{name}."))), None)
    if probe is None:
        known = [*GREATER_IS_BETTER, *(f"probes.{name}." for name in recipe.probes)]
        fix = f"choose one of {', '.join(GREATER_IS_BETTER)}, or a number of a probe: probes.NAME.KEY"
        yield Problem(f"nothing measures `{metric}`{did_you_mean(metric, known)}", fix=fix, path=path)
    elif section.greater_is_better is None:
        fix = "say `greater_is_better: true` or `false`"
        yield Problem(f"`{metric}` may be better when greater or when smaller", "only its probe knows", fix, path)


def _numbers(measured: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    """Yield the dotted names of all numbers, and the numbers."""
    for key, value in measured.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{path}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and f"{path}{key}" != "step":
            yield f"{path}{key}", value
