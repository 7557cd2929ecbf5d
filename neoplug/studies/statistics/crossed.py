"""Both noises together: seeds and documents are crossed, as every run is evaluated on the same documents.

A metric is a function of sums over documents, so documents with more tokens weigh more. `document_values` linearises
it: a run's metric is written as the mean of one value per document, whose variance is that of the metric to first
order. The differences of these values between arm and control, a table of n seeds and m documents, follow
z = mean + seed + document + rest, each with mean 0, and the variance of their mean is

    s2_seed/n + s2_document/m + s2_rest/(n m)

The components are those of the two-way analysis of variance, at least 0. Documents are never resampled within a seed:
that takes the n m cells for independent, although the cells of a document have its part in common.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neoplug.registry.measures import Measure
from neoplug.studies.statistics import ALPHA

Table = NDArray[np.float64]  # [n, m]


@dataclass(frozen=True)
class Crossed:
    """The mean of a table of seeds and documents, with the standard deviations of its parts.

    estimate     the mean over seeds and documents
    interval     95 % t interval for the mean over all seeds and all documents like these
    degrees      of freedom of its quantile (Satterthwaite); None where nothing varies
    documents    m
    seed_sd      of the differences over seeds, if each seed were evaluated on all documents
    document_sd  of the differences over documents, if each document were the mean over all seeds
    rest_sd      of what neither seed nor document explains
    """

    estimate: float
    interval: tuple[float, float]
    degrees: float | None
    documents: int
    seed_sd: float
    document_sd: float
    rest_sd: float


def crossed(differences: Table) -> Crossed | None:
    """Return the components of a table [n, m] of differences; None for fewer than two seeds or documents.

    The interval is a t interval. Satterthwaite's degrees of freedom are those of the mean squares that are left in the
    variance where a component is 0.
    """
    from scipy.stats import t

    n, m = differences.shape
    if min(n, m) < 2:
        return None
    mean = float(differences.mean())
    by_seed, by_document = differences.mean(1, keepdims=True), differences.mean(0, keepdims=True)
    freedom = np.array([n - 1, m - 1, (n - 1) * (m - 1)], dtype=float)
    left = differences - by_seed - by_document + mean
    squares = [m * ((by_seed - mean) ** 2).sum(), n * ((by_document - mean) ** 2).sum(), (left**2).sum()]
    seed, document, rest = np.array(squares) / freedom  # mean squares
    used = np.array([seed * (seed > rest), document * (document > rest), 0.0])
    used[2] = rest * (1 - np.count_nonzero(used))
    variance = float(used.sum()) / (n * m)
    degrees = float(used.sum() ** 2 / (used**2 / freedom).sum()) if variance else None
    half = 0.0 if degrees is None else float(t.isf(ALPHA / 2, degrees)) * math.sqrt(variance)
    return Crossed(
        mean,
        (mean - half, mean + half),
        degrees,
        m,
        seed_sd=math.sqrt(max(seed - rest, 0) / m),
        document_sd=math.sqrt(max(document - rest, 0) / n),
        rest_sd=math.sqrt(rest),
    )


def document_values(measure: Measure, sums: Mapping[str, Table], tokens: Table) -> Table:
    """Return the metric of each run as one value per document, [n, m]; the mean over documents is the metric.

    sums    each of `measure.sums` -> its sums per document and run
    tokens  the scored tokens of each document and run

    The value of a document is f + m times the sum of s df/dS over the quantities, where f is the metric, s the sum of
    a quantity over the document and S over all documents.
    """
    parts = [sums[name] for name in measure.sums]
    values: Table
    match measure.name:
        case "perplexity":
            nats = _ratio(parts[0], tokens)
            mean = nats.mean(1, keepdims=True)
            values = np.exp(mean) * (1 + nats - mean)
        case "top10_mass_share":
            values = _ratio(parts[0], parts[1])
        case "kd_ce_cosine":
            dot, kd, ce = parts
            kd_mean, ce_mean = kd.mean(1, keepdims=True), ce.mean(1, keepdims=True)
            scaled = dot / np.sqrt(kd_mean * ce_mean)
            values = scaled + scaled.mean(1, keepdims=True) * (1 - (kd / kd_mean + ce / ce_mean) / 2)
        case _:
            values = _ratio(parts[0], tokens)
    return values


def _ratio(numerator: Table, denominator: Table) -> Table:
    """Return the values of the ratio of the sums over documents."""
    ratio = numerator.sum(1, keepdims=True) / denominator.sum(1, keepdims=True)
    values: Table = ratio + (numerator - ratio * denominator) / denominator.mean(1, keepdims=True)
    return values
