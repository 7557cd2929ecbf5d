"""Selection of the best evaluation: the recipe's metric and its direction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from neoplug.errors import RunError, did_you_mean
from neoplug.recipe.metric_checks import prefers_greater, without_folder
from neoplug.recipe.schema import Evaluate
from neoplug.registry.nested import numbers


@dataclass(frozen=True)
class Best:
    """The best of several evaluations, the first of equal ones: its step, and the metric that they are compared by."""

    step: int
    metric: str
    value: float


@dataclass(frozen=True)
class Criterion:
    """The metric by which evaluations are compared."""

    metric: str
    greater_is_better: bool

    def best_of(self, evaluations: Sequence[Mapping[str, Any]]) -> Best:
        """Return the best of at least one evaluation; each has `step`, metrics and `probes`."""
        sign = 1 if self.greater_is_better else -1
        best = max(evaluations, key=lambda measured: sign * self.value(measured))  # the first of equal ones
        return Best(best["step"], self.metric, self.value(best))

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
    metric = section.metric_for_best_model
    return Criterion(metric, prefers_greater(metric, section.greater_is_better)) if metric else None
