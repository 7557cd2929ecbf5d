"""Selection of the best evaluation: the recipe's metric, its direction, and early stopping."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from neoplug.errors import RunError, did_you_mean
from neoplug.recipe.metric_checks import without_folder
from neoplug.recipe.schema import Evaluate
from neoplug.registry.measures import RANKING
from neoplug.registry.nested import numbers


@dataclass(frozen=True)
class Best:
    """The best of several evaluations, the first of equal ones: its step, and the metric that they are compared by."""

    step: int
    metric: str
    value: float


@dataclass(frozen=True)
class Comparison:
    """The result of comparing the evaluations of a run.

    best                 the best evaluation
    without_improvement  number of evaluations since the last one that was better than all before it by more than the
                         threshold; early stopping compares it with the patience
    """

    best: Best
    without_improvement: int


@dataclass(frozen=True)
class Criterion:
    """The metric by which evaluations are compared, and what counts as an improvement.

    `greater_is_better` and `threshold` have the meaning that they have for transformers' EarlyStoppingCallback.
    """

    metric: str
    greater_is_better: bool
    threshold: float

    def compare(self, evaluations: Sequence[Mapping[str, Any]]) -> Comparison:
        """Compare at least one evaluation, in their order; each has `step`, metrics and `probes`."""
        best, without_improvement = Best(evaluations[0]["step"], self.metric, self.value(evaluations[0])), 0
        for measured in evaluations[1:]:
            value = self.value(measured)
            gain = (value - best.value) * (1 if self.greater_is_better else -1)
            without_improvement = 0 if gain > self.threshold else without_improvement + 1
            if gain > 0:
                best = Best(measured["step"], self.metric, value)
        return Comparison(best, without_improvement)

    def value(self, measured: Mapping[str, Any]) -> float:
        """Return the metric's value.

        Raises:
            RunError: the evaluation has no metric of that name, or its value is not finite.
        """
        values = {without_folder(name): value for name, value in numbers(measured).items() if name != "step"}
        value = values.get(without_folder(self.metric))
        if value is None or not isfinite(value):
            raise RunError(
                f"evaluate.metric_for_best_model is {self.metric}, but the evaluation measured {value}"
                f"{did_you_mean(self.metric, [*values])}\nwhy: the best evaluation is the one with the best value\n"
                f"fix: choose one of {', '.join(sorted(values))}"
            )
        return float(value)


def criterion(section: Evaluate) -> Criterion | None:
    """Return the criterion of a recipe; None if it names no metric."""
    metric, greater_is_better = section.metric_for_best_model, section.greater_is_better
    if metric is None:
        return None
    if greater_is_better is None:
        greater_is_better = metric not in RANKING or bool(RANKING[metric].greater_is_better)
    return Criterion(metric, greater_is_better, section.early_stopping_threshold)
