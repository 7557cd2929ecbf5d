"""Descriptions of scores: the interquartile mean, probability of improvement, stability of ranks, good learning rates.

None of them is a test; ties are counted as such.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Improvement:
    """How often an arm is better than its control; a tie counts as half.

    wins, ties, losses  over the seeds that both have
    paired              the share of these seeds at which the arm is better
    unpaired            the share of all pairs of a run of the arm and a run of the control, of any seeds
    """

    wins: int
    ties: int
    losses: int
    paired: float
    unpaired: float


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau-b between the ranks that several raters, such as seeds, give to the same items, such as arms.

    mean, lowest  over the pairs of raters
    pairs         of raters that have at least two items in common, not all tied
    items         that at least one rater ranks
    """

    mean: float
    lowest: float
    pairs: int
    items: int


@dataclass(frozen=True)
class GoodRegion:
    """The tried rates around the best whose score is within the margin of the best.

    best, lowest, highest  rates
    width                  log10(highest / lowest)
    open                   it ends at the lowest or highest tried rate: its width is a lower bound
    """

    best: float
    lowest: float
    highest: float
    width: float
    open: bool


def interquartile_mean(scores: Scores) -> float:
    """Return the mean without the lowest and the highest quarter (of five scores, without one each)."""
    from scipy.stats import trim_mean

    return float(trim_mean(scores, 0.25))


def improvement(arm: Scores, control: Scores, *, greater_is_better: bool) -> Improvement:
    """Return how often the arm is better. The scores of a seed have the same place in both, [n]."""
    better, worse = (arm, control) if greater_is_better else (control, arm)
    wins, losses = int((better > worse).sum()), int((better < worse).sum())
    ties = len(arm) - wins - losses
    signs = np.sign(better[:, None] - worse)  # of all pairs of runs
    return Improvement(wins, ties, losses, (wins + ties / 2) / len(arm), float((signs.mean() + 1) / 2))


def agreement(ratings: Scores) -> Agreement | None:
    """Return the agreement of ratings, [raters, items], NaN where one is missing; None without a pair to compare."""
    from scipy.stats import kendalltau

    taus = []
    for one, other in combinations(ratings, 2):
        both = ~np.isnan(one) & ~np.isnan(other)
        if np.unique(one[both]).size > 1 and np.unique(other[both]).size > 1:  # else tau is undefined
            taus.append(float(kendalltau(one[both], other[both]).statistic))
    items = int((~np.isnan(ratings)).any(0).sum())
    return Agreement(float(np.mean(taus)), min(taus), len(taus), items) if taus else None


def good_region(rates: Sequence[float], losses: Sequence[float], margin: float) -> GoodRegion | None:
    """Return the region of good rates; None where no rate has a loss.

    rates   positive, ascending
    losses  the mean loss at each rate, smaller is better; NaN where a run of the rate failed
    """
    values = np.where(np.isnan(losses), math.inf, losses)
    best = int(values.argmin())
    if math.isinf(values[best]):
        return None
    bad = np.flatnonzero(values > values[best] + margin)
    first = int(bad[bad < best].max(initial=-1)) + 1
    last = int(bad[bad > best].min(initial=len(rates))) - 1
    width = math.log10(rates[last] / rates[first])
    return GoodRegion(rates[best], rates[first], rates[last], width, open=first == 0 or last == len(rates) - 1)
