"""The scores of a study's test runs by arm and seed, and their documents' sums, from the tables of the study.

A study's tables are pandas frames with the columns of its files:

runs       results.csv: a row for each job, with `id`, the axes, `seed`, `kind`, `status`, the searched keys, each
           metric (of the test half) and `validation_NAME`
documents  documents.parquet: a row for each job and held-out document, with `id`, `document`, `half`, `tokens` and
           the sums of each measure
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from neoplug.registry.measures import MEASURES
from neoplug.studies.statistics.crossed import Crossed, crossed, document_values

if TYPE_CHECKING:
    from neoplug.studies.study import Study


def with_arms(study: Study, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with a column `arm`, the name of each run's arm; runs of other arms are left out."""
    if runs.empty:  # and then perhaps without columns
        runs = runs.reindex(columns=[*study.axes, "seed", "kind", "status", "id"])
    names = ["/".join(map(str, levels)) for levels in runs[list(study.axes)].itertuples(index=False)]
    named = runs.assign(arm=names)
    return named[named["arm"].isin([arm.name for arm in study.arms])]


def test_runs(study: Study, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of test runs with the study's seeds, of runs that have `with_arms`."""
    return runs[(runs["kind"] == "test") & runs["seed"].isin(study.seeds)]


def scores_of(study: Study, tests: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return a metric of the completed test runs: a row for each seed, a column for each arm, NaN for a missing one."""
    completed = tests[tests["status"] == "completed"].reindex(columns=["seed", "arm", metric])
    values = pd.to_numeric(completed[metric]).replace([np.inf, -np.inf], np.nan)
    table = completed.assign(**{metric: values}).pivot(index="seed", columns="arm", values=metric)
    return table.reindex(index=list(study.seeds), columns=[arm.name for arm in study.arms]).astype(float)


class DocumentSums:
    """The sums of the test half's documents, by test run."""

    def __init__(self, documents: pd.DataFrame, tests: pd.DataFrame) -> None:
        half = documents[(documents["half"] == "test") & documents["id"].isin(tests["id"])]
        sums = half.drop(columns="half").groupby(["id", "document"]).sum(numeric_only=True, min_count=1)
        self._of_run = {name: part.droplevel("id") for name, part in sums.groupby(level="id")}
        self._id = {(row.arm, row.seed): row.id for row in tests.itertuples()}

    def crossed(self, metric: str, arm: str, control: str, seeds: Sequence[int]) -> Crossed | None:
        """Return the difference of two arms over seeds and documents; None where the sums do not permit it.

        They permit it for metrics of evaluation, if all these runs have the same documents, and there are at least two
        documents and two seeds. The arms have a score at each of the seeds.
        """
        ids = [self._id[name, seed] for name in (arm, control) for seed in seeds]
        if (measure := MEASURES.get(metric)) is None or not ids or not set(ids) <= self._of_run.keys():
            return None
        runs = [self._of_run[name] for name in ids]
        if not _comparable(runs, (*measure.sums, "tokens")):
            return None
        sums = {name: np.stack([run[name].to_numpy(float) for run in runs]) for name in (*measure.sums, "tokens")}
        values = document_values(measure, sums, sums["tokens"])
        return crossed(values[: len(seeds)] - values[len(seeds) :])


def _comparable(runs: Sequence[pd.DataFrame], columns: Sequence[str]) -> bool:
    """Return whether all runs have the same documents and these columns, without gaps."""
    return all(
        run.index.equals(runs[0].index)
        and set(columns) <= set(run.columns)
        and not run[list(columns)].isna().any(axis=None)
        for run in runs
    )
