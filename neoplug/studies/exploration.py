"""The exploratory parts of a study's summary: arms, linear models, stability of ranks, good values of searched keys.

`scores` is a metric's table of `scores_of`: a row for each seed, a column for each arm, NaN where a score is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pandas as pd

from neoplug.registry.measures import MEASURES
from neoplug.studies.statistics.description import agreement, good_region, interquartile_mean
from neoplug.studies.statistics.linear_model import BlockModel, block_model, interactions, seed_sd
from neoplug.studies.statistics.paired import mean_interval
from neoplug.studies.summary_schema import (
    ArmResult,
    FTestResult,
    InteractionResult,
    ModelResult,
    RanksResult,
    RatesResult,
)

if TYPE_CHECKING:
    from neoplug.studies.study import Study


def arm_result(metric: str, arm: str, scores: pd.DataFrame) -> ArmResult:
    """Return the description of an arm's scores."""
    values = scores[arm].dropna().to_numpy()
    if not len(values):
        return ArmResult(arm=arm, metric=metric, n=0)
    return ArmResult(
        arm=arm,
        metric=metric,
        n=len(values),
        mean=float(values.mean()),
        sd=float(values.std(ddof=1)) if len(values) > 1 else None,
        interval=mean_interval(values),
        interquartile_mean=interquartile_mean(values),
        lowest=float(values.min()),
        highest=float(values.max()),
    )


def model_of(scores: pd.DataFrame) -> BlockModel | None:
    """Return the linear model of arms and seeds."""
    long = scores.stack().dropna()
    return block_model(long.to_numpy(), _labels(long, "arm"), _labels(long, "seed"))


def model_result(study: Study, metric: str, scores: pd.DataFrame, model: BlockModel) -> ModelResult:
    """Return the tests of a linear model, with those of the interactions of axes."""
    long = scores.stack().dropna()
    arms, seeds = _labels(long, "arm"), _labels(long, "seed")
    levels = {arm.name: arm.levels for arm in study.arms}
    by_axis = {axis: [levels[arm][axis] for arm in arms] for axis in study.axes}
    varied = {axis: labels for axis, labels in by_axis.items() if len(set(labels)) > 1}
    return ModelResult(
        metric=metric,
        arms=None if model.arms is None else FTestResult(**asdict(model.arms)),
        interactions=[
            InteractionResult(axes=axes, **asdict(test))
            for axes, test in interactions(long.to_numpy(), varied, seeds).items()
        ],
        residual_sd=model.residual_sd,
        seed_sd=seed_sd(long.to_numpy(), arms, seeds),
    )


def rank_results(study: Study, metric: str, scores: pd.DataFrame) -> Iterator[RanksResult]:
    """Yield the stability of ranks over seeds, and over the levels of each axis."""
    ratings = {"seed": scores.to_numpy()}
    means = scores.mean()
    for axis in study.axes:
        table = pd.DataFrame(
            {
                "level": [arm.levels[axis] for arm in study.arms],
                "rest": ["/".join(level for name, level in arm.levels.items() if name != axis) for arm in study.arms],
                "mean": means,
            }
        )
        ratings[axis] = table.pivot(index="level", columns="rest", values="mean").to_numpy()
    for over, values in ratings.items():
        if (found := agreement(values)) is not None:
            yield RanksResult(metric=metric, over=over, **asdict(found))


def rate_results(study: Study, searches: pd.DataFrame) -> Iterator[RatesResult]:
    """Yield the good region of each searched key for each arm; nothing without a margin of the first metric.

    searches  the runs of the search; a trial of which a run did not complete has no score
    """
    metric, margin = next(iter(study.metrics.items()))
    measure = MEASURES.get(metric)
    if not study.search.keys or margin is None or measure is None or measure.greater_is_better is None:
        return
    keys, score = [searched.column for searched in study.search.keys.values()], f"validation_{metric}"
    tried = searches[searches["seed"].isin(study.search.seeds)].reindex(columns=["arm", "status", *keys, score])
    tried["loss"] = tried[score].where(tried["status"] == "completed") * (-1 if measure.greater_is_better else 1)
    for arm in study.arms:
        trials = tried[tried["arm"] == arm.name].groupby(keys)["loss"].agg(["mean", "count"]).reset_index()
        trials["loss"] = trials["mean"].where(trials["count"] == len(study.search.seeds))
        if not trials["loss"].notna().any():
            continue
        best = trials.loc[trials["loss"].idxmin()]
        for key in keys:
            others = [other for other in keys if other != key]
            line = trials[(trials[others] == best[others]).all(axis=1) & (trials[key] > 0)].sort_values(key)
            if (region := good_region(list(line[key]), list(line["loss"]), margin)) is not None:
                yield RatesResult(arm=arm.name, key=key, **asdict(region))


def _labels(long: pd.Series[float], name: str) -> list[Any]:
    return list(long.index.get_level_values(name))
