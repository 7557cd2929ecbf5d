"""Early stopping: training ends when evaluations no longer improve, as with transformers' EarlyStoppingCallback."""

import re
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from neoplug import Problem, Recipe, hookimpl, prefers_greater, ranking_problem


@dataclass(eq=False)
class EarlyStopping:
    """End training after `patience` evaluations without an improvement of `metric` by more than `threshold`."""

    metric: str  # of the evaluation, or probes.NAME.KEY
    patience: int = 3  # evaluations, from 1
    threshold: float = 0.0  # an improvement is larger
    greater_is_better: bool | None = None  # None: as the metric says, which one of a probe does not
    _best: float | None = field(default=None, init=False)
    _without: int = field(default=0, init=False)  # evaluations since the last improvement

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"patience is {self.patience}, but must be at least 1")
        if not 0 <= self.threshold < float("inf"):
            raise ValueError(f"threshold is {self.threshold}, but must be finite and not negative")

    @hookimpl
    def check(self, recipe: Recipe) -> list[Problem]:
        """Refuse a recipe without evaluations during training, and a metric that cannot be compared."""
        problems = [ranking_problem(recipe, self.metric, self.greater_is_better)]
        if recipe.evaluate.eval_steps is None:
            why, fix = "it compares evaluations during training", "set `evaluate.eval_steps`"
            problems.append(Problem("`early_stopping` needs `eval_steps`", why, fix))
        return [problem for problem in problems if problem]

    @hookimpl
    def should_stop(self, measured: dict[str, Any] | None) -> str | None:
        """Return the reason after the last evaluation that the patience allows."""
        if measured is None:
            return None
        value = self._value(measured)
        if self._best is None:
            self._best = value
            return None
        gain = (value - self._best) * (1 if prefers_greater(self.metric, self.greater_is_better) else -1)
        self._without = 0 if gain > self.threshold else self._without + 1
        self._best = value if gain > 0 else self._best
        if self._without < self.patience:
            return None
        return f"{self.metric} did not improve in {self._without} evaluations; the best is {self._best:.6g}"

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and the evaluations since."""
        return {"best": self._best, "without": self._without}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._best, self._without = state["best"], state["without"]

    def _value(self, measured: dict[str, Any]) -> float:
        """Return the metric. Raises ValueError where the evaluation does not have it as a finite number."""
        probes = measured.get("probes", {})
        found = {f"probes.{name}.{key}": value for name, values in probes.items() for key, value in values.items()}
        by_name = {_without_folder(name): value for name, value in (measured | found).items()}
        value = by_name.get(_without_folder(self.metric))
        if not isinstance(value, int | float) or not isfinite(value):
            raise ValueError(f"the evaluation measured {self.metric} as {value}, and early stopping compares numbers")
        return float(value)


def _without_folder(metric: str) -> str:
    """Return a metric's name without the folder of the probe's file."""
    return re.sub(r"^probes\..*/", "probes.", metric)
