"""Paired comparisons over seeds: t intervals and tests, equivalence, Holm's adjustment within a family.

An arm and its control share each seed, so that what the seed does to both cancels in their differences (arm minus
control). Tests assume that the differences are independent and normal.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from neoplug.studies.statistics import ALPHA, POWER

Scores = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Pairs:
    """Scores of an arm and its control for the seeds that both have, [n] each, and what counts as no difference.

    margin  differences within +- margin count as none; None: equivalence is not tested
    """

    arm: Scores
    control: Scores
    margin: float | None = None


@dataclass(frozen=True)
class Comparison:
    """The comparison of an arm with its control, as one of the k of a family.

    n                    pairs
    estimate             the mean difference, arm minus control; None without pairs
    interval             95 % t interval, unadjusted; None for n < 2, as are all below
    interval_adjusted    95 % for all k intervals of the family together (Bonferroni), wider than Holm's tests require
    p, p_adjusted        two-sided t test of no difference, and adjusted within the family (Holm)
    p_equivalence        the two one-sided tests against the margin, adjusted within the family (Holm); None without one
    smallest_detectable  the true difference that Holm's first step, a test at 5 %/k, finds with probability 0.8, if
                         the standard deviation of the differences is the observed one
    """

    n: int
    estimate: float | None = None
    interval: Interval | None = None
    interval_adjusted: Interval | None = None
    p: float | None = None
    p_adjusted: float | None = None
    p_equivalence: float | None = None
    smallest_detectable: float | None = None

    @property
    def equivalent(self) -> bool | None:
        """Whether the difference is shown to lie within the margin; None where that is not tested."""
        return None if self.p_equivalence is None else self.p_equivalence <= ALPHA

    @property
    def sign(self) -> int:
        """1 where the difference is above 0 by the adjusted test, -1 where it is below, else 0."""
        if self.p_adjusted is None or self.estimate is None or self.p_adjusted > ALPHA:
            return 0
        return int(np.sign(self.estimate))


def compare(family: Sequence[Pairs]) -> list[Comparison]:
    """Return the comparisons of a family, in its order.

    A planned comparison that lacks pairs still counts in the family: its p is 1 for the adjustment of the others.
    """
    k = len(family)
    samples = [_Sample(pairs) for pairs in family]
    p = [sample.p() for sample in samples]
    p_equivalence = [sample.p_equivalence(pairs.margin) for sample, pairs in zip(samples, family, strict=True)]
    adjusted, adjusted_equivalence = holm(p), holm(p_equivalence, sum(pairs.margin is not None for pairs in family))
    return [
        Comparison(
            sample.n,
            sample.mean,
            sample.interval(ALPHA),
            sample.interval(ALPHA / k),
            p[at],
            adjusted[at],
            adjusted_equivalence[at],
            None if sample.sd is None else sample.sd * detectable_effect(sample.n, k),
        )
        for at, sample in enumerate(samples)
    ]


def holm(p: Sequence[float | None], k: int | None = None) -> list[float | None]:
    """Return Holm's adjusted p-values; None stays None, and counts among the `k` tests (default: all) as p = 1."""
    from statsmodels.stats.multitest import multipletests

    known = [at for at, value in enumerate(p) if value is not None]
    adjusted: list[float | None] = [None] * len(p)
    if known:
        missing = (len(p) if k is None else k) - len(known)
        values = multipletests([*(p[at] for at in known), *[1.0] * missing], method="holm")[1]
        for at, value in zip(known, values, strict=False):
            adjusted[at] = float(value)
    return adjusted


@cache
def detectable_effect(n: int, k: int) -> float:
    """Return the smallest detectable difference of a t test at ALPHA/k in standard deviations of the n differences.

    It is the noncentrality at which the test has the power POWER, over the root of n; the chance of a significant
    difference of the wrong sign, below 1e-6 there, is left out.
    """
    from scipy.special import nctdtrinc

    return float(nctdtrinc(n - 1, 1 - POWER, t_quantile(n - 1, ALPHA / k))) / math.sqrt(n)


def significant_effect(n: int, k: int) -> float:
    """Return the observed mean difference from which a t test at ALPHA/k is significant, in standard deviations."""
    return t_quantile(n - 1, ALPHA / k) / math.sqrt(n)


def seeds_to_detect(difference: float, sd: float, k: int, most: int = 1_000) -> int | None:
    """Return the fewest seeds with which a test at ALPHA/k finds a true difference with the probability POWER.

    sd  of the paired differences

    None where more than `most` are needed.
    """
    return next((n for n in range(2, most + 1) if sd * detectable_effect(n, k) <= difference), None)


def mean_interval(scores: Scores) -> Interval | None:
    """Return the 95 % t interval of a mean over seeds; None for fewer than two."""
    return _Sample(Pairs(scores, np.zeros_like(scores))).interval(ALPHA)


def t_quantile(degrees: int, alpha: float) -> float:
    """Return the value that a t variable exceeds in absolute value with probability alpha."""
    from scipy.special import stdtrit

    return -float(stdtrit(degrees, alpha / 2))


class _Sample:
    """The differences of paired scores. `mean`: None for n = 0; `sd`: None for n < 2, 0 up to rounding."""

    def __init__(self, pairs: Pairs) -> None:
        self.differences = pairs.arm - pairs.control
        self.n = len(self.differences)
        rounding = 8 * np.finfo(float).eps * float(np.abs([pairs.arm, pairs.control]).max(initial=0))
        self.mean = _rounded(self.differences.mean(), rounding) if self.n else None
        self.sd = _rounded(self.differences.std(ddof=1), rounding) if self.n > 1 else None

    def interval(self, alpha: float) -> Interval | None:
        """Return the t interval with confidence 1 - alpha; without variance its ends are the mean."""
        if self.mean is None or self.sd is None:
            return None
        half = t_quantile(self.n - 1, alpha) * self.sd / math.sqrt(self.n)
        return self.mean - half, self.mean + half

    def p(self) -> float | None:
        """Return the p-value of the two-sided t test; without variance 1 for a mean of 0, and 0 for others."""
        if self.mean is None or self.sd is None:
            return None
        if self.sd == 0:
            return float(self.mean == 0)
        return 2 * _tail(-abs(self.mean) / self.sd, self.n)

    def p_equivalence(self, margin: float | None) -> float | None:
        """Return the larger p-value of the two one-sided tests against +- margin; without variance 0 or 1."""
        if self.mean is None or self.sd is None or margin is None:
            return None
        if self.sd == 0:
            return float(abs(self.mean) >= margin)
        return _tail((abs(self.mean) - margin) / self.sd, self.n)


def _tail(effect: float, n: int) -> float:
    """Return the probability that the mean of n differences, in standard deviations, is below `effect` by chance."""
    from scipy.special import stdtr

    return float(stdtr(n - 1, effect * math.sqrt(n)))


def _rounded(value: float, rounding: float) -> float:
    """Return 0 for a value that is a rounding error."""
    return float(value) if abs(value) > rounding else 0.0
