"""A weighted mixture of several sources: how many rows of each an epoch has, and which.

An epoch is the longest that has the shares of the weights and repeats no row: the source with the fewest rows for its
weight appears as a whole, the others in proportion. Each source has a separate stream of permutations, which continues
from one epoch to the next, so that over several epochs each of its rows appears as often as any other, up to one time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np

from neoplug.seeds import derive


def epoch_rows(rows: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, int]:
    """Return how many rows of each source an epoch has: in proportion to the weights, rounded down, at least 1.

    rows     number of rows of each source
    weights  any positive numbers; only their ratios count
    """
    exact = {name: Fraction(str(weight)) for name, weight in weights.items()}
    per_weight = min(rows[name] / weight for name, weight in exact.items())
    return {name: max(1, int(weight * per_weight)) for name, weight in exact.items()}


@dataclass(frozen=True)
class Mixture:
    """The rows of several sources, numbered one source after the other.

    names  the sources' names
    rows   number of rows of each
    shown  number of rows of each in an epoch, at most `rows`
    """

    names: tuple[str, ...]
    rows: tuple[int, ...]
    shown: tuple[int, ...]

    def epoch(self, seed: int, epoch: int) -> np.ndarray:
        """Return [sum of `shown`] int64: the row numbers of an epoch, in training order."""
        return _epoch(self, seed, epoch)


@lru_cache(maxsize=2)
def _epoch(mixture: Mixture, seed: int, epoch: int) -> np.ndarray:
    chosen, first = [], 0
    for name, rows, shown in zip(mixture.names, mixture.rows, mixture.shown, strict=True):
        chosen.append(first + _from_stream(rows, derive(seed, "source", name), epoch * shown, shown))
        first += rows
    rows_of_epoch: np.ndarray = np.concatenate(chosen)[permutation(sum(mixture.shown), seed, epoch)]
    return rows_of_epoch


def _from_stream(rows: int, seed: int, start: int, count: int) -> np.ndarray:
    """Return [count] int64: numbers below `rows`, from index `start` of a stream of concatenated permutations."""
    passes = range(start // rows, -(-(start + count) // rows))
    return np.concatenate([permutation(rows, seed, number) for number in passes])[start % rows :][:count]


@lru_cache(maxsize=2)
def permutation(rows: int, seed: int, epoch: int) -> np.ndarray:
    """Return [rows] int64: a random permutation, the same on every machine and numpy: Philox's raw bits are stable."""
    bits = np.random.Philox(np.random.SeedSequence([seed % 2**64, epoch])).random_raw(rows)
    return np.argsort(bits, kind="stable")
