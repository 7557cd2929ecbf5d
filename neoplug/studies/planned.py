"""The planned comparisons of a study: the lines of each family, and its answer to whether a gain is robust."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING

import pandas as pd

from neoplug.registry.measures import MEASURES
from neoplug.studies.scores import DocumentSums
from neoplug.studies.statistics import ALPHA
from neoplug.studies.statistics.crossed import Crossed
from neoplug.studies.statistics.description import improvement
from neoplug.studies.statistics.linear_model import BlockModel
from neoplug.studies.statistics.paired import Pairs, compare
from neoplug.studies.summary_schema import (
    Answer,
    BothNoises,
    ContrastResult,
    ImprovementResult,
    PooledResult,
    RobustResult,
)

if TYPE_CHECKING:
    from neoplug.studies.study import Contrast, Study


def family_results(
    study: Study,
    contrast: Contrast,
    scores: Mapping[str, pd.DataFrame],
    models: Mapping[str, BlockModel],
    sums: DocumentSums | None,
) -> list[ContrastResult]:
    """Return the comparisons of a family: for each of its metrics, each of its arms with its control.

    scores  metric -> its table, see `scores_of`
    models  metric -> the linear model of its scores, where there is one
    """
    compared = contrast.pairs(study.arms)
    planned = [(metric, arm.name, control.name) for metric in contrast.metrics for arm, control in compared]
    tables = [scores[metric][[arm, control]].dropna() for metric, arm, control in planned]
    family = [
        Pairs(table[arm].to_numpy(), table[control].to_numpy(), study.metrics[metric])
        for (metric, arm, control), table in zip(planned, tables, strict=True)
    ]
    return [
        ContrastResult(
            family=contrast.name,
            metric=metric,
            arm=arm,
            control=control,
            **asdict(comparison),
            equivalent=comparison.equivalent,
            margin=pairs.margin,
            both_noises=None if sums is None else _both_noises(sums.crossed(metric, arm, control, list(table.index))),
            pooled=_pooled(models.get(metric), arm, control) if comparison.n else None,
            improvement=_improvement(metric, pairs),
        )
        for (metric, arm, control), table, pairs, comparison in zip(
            planned, tables, family, compare(family), strict=True
        )
    ]


def answers(family: Sequence[ContrastResult]) -> Iterator[RobustResult]:
    """Yield the answer for each metric of a family."""
    for metric, lines in groupby(family, key=lambda line: line.metric):
        gains = [_gain(line) for line in lines]
        counts = {kind: gains.count(kind) for kind in ("above 0", "below 0", "within the margin of 0", "undecided")}
        yield RobustResult(
            family=family[0].family,
            metric=metric,
            robust=_answer(gains),
            reason=f"of {len(gains)} gains: " + ", ".join(f"{count} {kind}" for kind, count in counts.items() if count),
        )


def _answer(gains: Sequence[str]) -> Answer:
    if "below 0" in gains or "within the margin of 0" in gains:
        return "no"
    return "yes" if set(gains) == {"above 0"} else "undecided"


def _gain(line: ContrastResult) -> str:
    """Return what is shown of the gain of an arm over its control."""
    if line.equivalent:
        return "within the margin of 0"
    better = _greater_is_better(line.metric)
    if better is None or line.estimate is None or line.p_adjusted is None or line.p_adjusted > ALPHA:
        return "undecided"
    return "above 0" if (line.estimate > 0) == better else "below 0"


def _both_noises(found: Crossed | None) -> BothNoises | None:
    return None if found is None else BothNoises(**asdict(found))


def _pooled(model: BlockModel | None, arm: str, control: str) -> PooledResult | None:
    if model is None:
        return None
    found = model.difference(arm, control)
    return PooledResult(interval=found.interval, p=found.p)


def _improvement(metric: str, pairs: Pairs) -> ImprovementResult | None:
    better = _greater_is_better(metric)
    if better is None or not len(pairs.arm):
        return None
    return ImprovementResult(**asdict(improvement(pairs.arm, pairs.control, greater_is_better=better)))


def _greater_is_better(metric: str) -> bool | None:
    """Return the direction of a metric; None where it has none, or is a probe's."""
    return MEASURES[metric].greater_is_better if metric in MEASURES else None
