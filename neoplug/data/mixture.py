"""A weighted mixture of several sources: how many rows of each an epoch has, and which.

An epoch has rows of the sources in proportion to their weights, as many as are possible without a repeated row: all
rows of the source that has the fewest for its weight, and a part of the others'. Each source has a separate stream of
permutations of its rows, and an epoch continues where the one before ended. The numbers of times that two rows of a
source have been trained on therefore differ by at most one.
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
    weights  any positive numbers; only their ratios matter
    """
    exact = {name: Fraction(str(weight)) for name, weight in weights.items()}
    per_weight = min(rows[name] / weight for name, weight in exact.items())
    return {name: max(1, int(weight * per_weight)) for name, weight in exact.items()}


@dataclass(frozen=True)
class Mixture:
    """The rows of several sources, numbered one source after the other.

    names       the sources' names
    rows        number of rows of each source
    epoch_rows  number of rows of each source in an epoch, at most `rows`
    """

    names: tuple[str, ...]
    rows: tuple[int, ...]
    epoch_rows: tuple[int, ...]

    def epoch(self, seed: int, epoch: int) -> np.ndarray:
        """Return [sum of `epoch_rows`] int64: the row numbers of an epoch, in training order."""
        return _epoch(self, seed, epoch)


@lru_cache(maxsize=2)
def _epoch(mixture: Mixture, seed: int, epoch: int) -> np.ndarray:
    chosen, first = [], 0
    for name, rows, count in zip(mixture.names, mixture.rows, mixture.epoch_rows, strict=True):
        chosen.append(first + _from_stream(rows, derive(seed, "source", name), epoch * count, count))
        first += rows
    rows_of_epoch: np.ndarray = np.concatenate(chosen)[permutation(sum(mixture.epoch_rows), seed, epoch)]
    return rows_of_epoch


def _from_stream(rows: int, seed: int, start: int, count: int) -> np.ndarray:
    """Return [count] int64: row numbers from index `start` on of an endless sequence of permutations of `rows` rows."""
    passes = range(start // rows, -(-(start + count) // rows))
    return np.concatenate([permutation(rows, seed, number) for number in passes])[start % rows :][:count]


@lru_cache(maxsize=2)
def permutation(rows: int, seed: int, epoch: int) -> np.ndarray:
    """Return [rows] int64: a random permutation; Philox's bits are the same on all machines and numpy versions."""
    bits = np.random.Philox(np.random.SeedSequence([seed % 2**64, epoch])).random_raw(rows)
    return np.argsort(bits, kind="stable")
