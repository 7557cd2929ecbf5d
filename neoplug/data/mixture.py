"""Several sources with weights: how many rows of each an epoch shows, and which.

An epoch is the longest that meets the weights and needs no source twice: the one that is scarcest beside its weight
appears as a whole, of the others as many rows as fit beside it. Each source goes through permutations of its own, on
from one epoch to the next, so that each of its rows comes as often as any other, give or take one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np

from neoplug.seeds import derive


def epoch_rows(rows: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, int]:
    """Return how many rows of each source an epoch shows: shares by weight, rounded down, at least one.

    rows     how many each source has
    weights  any positive numbers; only their ratios count
    """
    exact = {name: Fraction(str(weight)) for name, weight in weights.items()}
    per_weight = min(rows[name] / weight for name, weight in exact.items())
    return {name: max(1, int(weight * per_weight)) for name, weight in exact.items()}


@dataclass(frozen=True)
class Mixture:
    """The rows of several sources, numbered one source after the other.

    names  of the sources
    rows   how many each has
    shown  how many of them an epoch shows, at most all
    """

    names: tuple[str, ...]
    rows: tuple[int, ...]
    shown: tuple[int, ...]

    def epoch(self, seed: int, epoch: int) -> np.ndarray:
        """Return [sum of `shown`] int64: the rows of an epoch, in its order."""
        return _epoch(self, seed, epoch)


@lru_cache(maxsize=2)
def _epoch(mixture: Mixture, seed: int, epoch: int) -> np.ndarray:
    chosen, first = [], 0
    for name, rows, shown in zip(mixture.names, mixture.rows, mixture.shown, strict=True):
        chosen.append(first + _walk(rows, derive(seed, "source", name), epoch * shown, shown))
        first += rows
    together = np.concatenate(chosen)
    return together[permutation(len(together), seed, epoch)]


def _walk(rows: int, seed: int, start: int, steps: int) -> np.ndarray:
    """Return `steps` numbers below `rows` from place `start` of permutations that follow each other."""
    passes = range(start // rows, -(-(start + steps) // rows))
    return np.concatenate([permutation(rows, seed, number) for number in passes])[start % rows :][:steps]


@lru_cache(maxsize=2)
def permutation(rows: int, seed: int, epoch: int) -> np.ndarray:
    """Return [rows] int64: a random permutation, the same everywhere: numpy promises Philox's raw bits to stay."""
    bits = np.random.Philox(np.random.SeedSequence([seed % 2**64, epoch])).random_raw(rows)
    return np.argsort(bits, kind="stable")
