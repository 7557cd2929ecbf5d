"""Linear models over all arms, with the seed as block: F tests of arms and of interactions, pooled t intervals.

score = arm + seed + error, by least squares. The variance of the error is pooled over all arms, which gives its
intervals more degrees of freedom than those of one pair of arms have; they hold where the variance is the same in all
arms. A mixed model, in which the seeds are random, describes how much of the variance they explain; its intervals use
normal quantiles, which are too narrow for few seeds, and are not reported.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neoplug.studies.statistics import ALPHA

Labels = Sequence[Any]  # the arm, level or seed of each score
Columns = NDArray[np.float64]  # of a design, [scores, columns]


@dataclass(frozen=True)
class FTest:
    """A test whether some terms of a model explain more than chance.

    f        None where the model leaves no residual; p is then 0 if the terms explain anything, else 1
    degrees  of freedom of the terms and of the residual
    """

    f: float | None
    degrees: tuple[int, int]
    p: float


@dataclass(frozen=True)
class Pooled:
    """A difference of two arms, its 95 % t interval and its p, with the variance pooled over all arms."""

    estimate: float
    interval: tuple[float, float]
    p: float


@dataclass(frozen=True)
class BlockModel:
    """The fitted model of arms and seeds; see `block_model`.

    arms         whether any two arms differ; None where there is one arm
    residual_sd  standard deviation of a score, given its arm and seed
    """

    arms: FTest | None
    residual_sd: float
    _fit: Any
    _column: Mapping[Any, int | None]  # arm -> its column in the design; the first arm has none

    def difference(self, arm: Any, control: Any) -> Pooled:
        """Return the difference of two arms that have a seed in common."""
        contrast = np.zeros(self._fit.model.exog.shape[1])
        for name, sign in ((arm, 1), (control, -1)):
            if (column := self._column[name]) is not None:
                contrast[column] = sign
        if _without_residual(self._fit):
            estimate = float(contrast @ self._fit.params)
            return Pooled(estimate, (estimate, estimate), float(abs(estimate) <= _rounding(self._fit)))
        test = self._fit.t_test(contrast)
        low, high = test.conf_int(ALPHA)[0]
        return Pooled(float(test.effect[0]), (float(low), float(high)), float(test.pvalue))


def block_model(scores: Sequence[float], arms: Labels, seeds: Labels) -> BlockModel | None:
    """Fit the model of arms and seeds; return None where no degree of freedom is left for the residual."""
    if not len(scores):
        return None
    blocks = _blocks(seeds)
    fit = _fitted(scores, [blocks, _indicators(arms)])
    if fit.df_resid < 1:
        return None
    column = {arm: blocks.shape[1] + at - 1 if at else None for at, arm in enumerate(dict.fromkeys(arms))}
    return BlockModel(_f_test(fit, _fitted(scores, [blocks])), float(np.sqrt(fit.scale)), fit, column)


def interactions(scores: Sequence[float], levels: Mapping[str, Labels], seeds: Labels) -> dict[tuple[str, str], FTest]:
    """Return the F test of each pair of axes: does the effect of one depend on the level of the other?

    levels  axis -> its level of each score

    The model has seeds, axes and all pairs of axes. A pair that the arms cannot tell from other terms is left out.
    """
    if not len(scores):
        return {}
    columns = {axis: _indicators(labels) for axis, labels in levels.items()}
    pairs = {pair: _products(columns[pair[0]], columns[pair[1]]) for pair in combinations(columns, 2)}
    mains = [_blocks(seeds), *columns.values()]
    full = _fitted(scores, [*mains, *pairs.values()])
    if full.df_resid < 1:
        return {}
    tests = {pair: _f_test(full, _fitted(scores, [*mains, *(pairs[other] for other in pairs if other != pair)]))
             for pair in pairs}  # fmt: skip
    return {pair: test for pair, test in tests.items() if test is not None}


def seed_sd(scores: Sequence[float], arms: Labels, seeds: Labels) -> float | None:
    """Return the standard deviation of what a seed does to all arms alike, from a mixed model (REML).

    None where the fit fails or does not converge.
    """
    from statsmodels.regression.mixed_linear_model import MixedLM

    design = np.column_stack([np.ones(len(scores)), _indicators(arms)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # singular or flat fits, which `converged` states
        try:
            fit = MixedLM(np.asarray(scores, float), design, groups=list(seeds)).fit(method="powell")
        except (np.linalg.LinAlgError, ValueError):
            return None
    variance = float(fit.cov_re[0, 0])
    return float(np.sqrt(variance)) if fit.converged and np.isfinite(variance) else None


def _indicators(labels: Labels) -> Columns:
    """Return a column for each label but the first: 1 where a score has it."""
    names = list(dict.fromkeys(labels))
    return np.array([[float(label == name) for name in names[1:]] for label in labels]).reshape(len(labels), -1)


def _blocks(seeds: Labels) -> Columns:
    """Return the constant and the indicators of the seeds."""
    return np.column_stack([np.ones(len(seeds)), _indicators(seeds)])


def _products(first: Columns, second: Columns) -> Columns:
    """Return the products of each column of one with each of the other."""
    return (first[:, :, None] * second[:, None, :]).reshape(len(first), -1)


def _fitted(scores: Sequence[float], columns: Sequence[Columns]) -> Any:
    """Return the least-squares fit of scores on the columns.

    Columns may depend on each other: the residual, and all that is estimated from it, is the same for each solution.
    """
    from statsmodels.regression.linear_model import OLS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return OLS(np.asarray(scores, float), np.column_stack(columns)).fit()


def _f_test(full: Any, reduced: Any) -> FTest | None:
    """Return the test of the terms that `reduced` lacks; None where they add no degree of freedom."""
    degrees = int(reduced.df_resid - full.df_resid), int(full.df_resid)
    if degrees[0] < 1:
        return None
    if _without_residual(full):
        return FTest(None, degrees, float(_without_residual(reduced)))
    f, p, _ = full.compare_f_test(reduced)
    return FTest(float(f), degrees, float(p))


def _without_residual(fit: Any) -> bool:
    """Return whether the residuals are rounding errors."""
    return bool(np.abs(fit.resid).max() <= _rounding(fit))


def _rounding(fit: Any) -> float:
    return float(64 * np.finfo(float).eps * np.abs(fit.model.endog).max())
