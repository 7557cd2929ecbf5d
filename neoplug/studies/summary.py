"""The summary of a study, summary.json, from its tables of runs, documents and references.

The comparisons use the test runs that completed. A run that did not complete is missing from its arm; nothing is filled
in, and a remark states it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from neoplug.studies.checks import FEW_SEEDS
from neoplug.studies.exploration import arm_result, model_of, model_result, rank_results, rate_results
from neoplug.studies.planned import answers, family_results
from neoplug.studies.scores import DocumentSums, scores_of, test_runs, with_arms
from neoplug.studies.statistics.paired import detectable_effect, significant_effect
from neoplug.studies.summary_schema import ContrastResult, ReferenceResult, Summary

if TYPE_CHECKING:
    from neoplug.studies.study import Study


def summarise(
    study: Study,
    runs: pd.DataFrame,
    documents: pd.DataFrame | None = None,
    references: pd.DataFrame | None = None,
) -> Summary:
    """Return the summary of a study, which may be incomplete.

    runs, documents  as in `neoplug.studies.scores`
    references       the axes, `reference`, and metrics: of the untrained student and of the teacher of each arm
    """
    runs = with_arms(study, runs)
    tests = test_runs(study, runs)
    scores = {metric: scores_of(study, tests, metric) for metric in study.metrics}
    models = {metric: model for metric, table in scores.items() if (model := model_of(table)) is not None}
    sums = None if documents is None or documents.empty else DocumentSums(documents, tests)
    families = [family_results(study, contrast, scores, models, sums) for contrast in study.contrasts]
    return Summary(
        contrasts=[line for family in families for line in family],
        robust=[answer for family in families for answer in answers(family)],
        arms=[arm_result(metric, arm, table) for metric, table in scores.items() for arm in table.columns],
        references=[] if references is None else list(_references(study, references)),
        models=[model_result(study, metric, scores[metric], model) for metric, model in models.items()],
        ranks=[result for metric, table in scores.items() for result in rank_results(study, metric, table)],
        rates=list(rate_results(study, runs[runs["kind"] == "search"])),
        remarks=[*_missing(study, tests, scores), *_limits(study, families)],
    )


def _references(study: Study, references: pd.DataFrame) -> Iterator[ReferenceResult]:
    """Yield the references of the study's arms."""
    for row in with_arms(study, references).to_dict("records"):
        values = {metric: row.get(metric) for metric in study.metrics}
        yield ReferenceResult(
            arm=row["arm"],
            reference=row["reference"],
            values={metric: None if pd.isna(value) else float(value) for metric, value in values.items()},
        )


def _missing(study: Study, tests: pd.DataFrame, scores: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    """Yield a remark for each arm of which a test run or a score is missing."""
    for arm in study.arms:
        states = Counter(tests[tests["arm"] == arm.name]["status"])
        states["not run"] = len(study.seeds) - states.total()
        completed = states.pop("completed", 0)
        if completed < len(study.seeds):
            others = ", ".join(f"{count} {state}" for state, count in states.items() if count)
            yield (
                f"{arm.name}: {completed} of {len(study.seeds)} test runs completed ({others}); "
                "its comparisons use the seeds that both arms have"
            )
        for metric, table in scores.items():
            if (known := int(table[arm.name].notna().sum())) < completed:
                yield f"{arm.name}: {known} of {completed} completed test runs have a finite {metric}"


def _limits(study: Study, families: Sequence[Sequence[ContrastResult]]) -> Iterator[str]:
    """Yield remarks on what the number of seeds cannot show."""
    n = len(study.seeds)
    if n < FEW_SEEDS:
        yield f"{n} test seed{'s' * (n > 1)}: fewer than {FEW_SEEDS} support no claim"
    for family in families:
        k = len(family)
        if n > 1 and k:
            yield (
                f"{family[0].family}: with {k} comparison{'s' * (k > 1)} and {n} seeds, an observed difference is "
                f"significant from {significant_effect(n, k):.1f} standard deviations of the paired differences on, "
                f"and a true one of {detectable_effect(n, k):.1f} is found with probability 0.8"
            )
        for line in family:
            if line.interval is not None and line.interval[0] == line.interval[1]:
                yield (
                    f"{line.family}: {line.arm} differs from {line.control} in {line.metric} by the same value at each "
                    "seed, so its tests find no noise"
                )
