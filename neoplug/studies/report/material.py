"""What a report is made of, read from the directory of a study: no model, data or study file is needed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from neoplug.errors import UsageError
from neoplug.files import read_json
from neoplug.registry.consent import RUN_FILES
from neoplug.registry.measures import MEASURES, Measure
from neoplug.studies.directory import AGAIN, StudyDir
from neoplug.studies.record import read_description, read_parquet, read_summary, read_table
from neoplug.studies.scores import scores_of, test_runs, with_arms
from neoplug.studies.study import Study
from neoplug.studies.summary import summarise
from neoplug.studies.summary_schema import Summary


@dataclass(frozen=True, eq=False)
class Material:
    """The files of a study.

    runs        results.parquet with the column `arm`: a row for each run, those of an arm together
    references  as in references.parquet; may be empty
    summary     summary.json; computed from the tables where it is absent
    state       status.json; empty where it is absent
    lock        study.lock.json; empty where it is absent
    """

    folder: Path
    study: Study
    runs: pd.DataFrame
    references: pd.DataFrame
    summary: Summary
    state: Mapping[str, Any]
    lock: Mapping[str, Any]
    anchors: Mapping[str, str] = field(default_factory=dict)  # arm -> id of its first row in the table of runs

    @cached_property
    def tests(self) -> pd.DataFrame:
        """The test runs."""
        return test_runs(self.study, self.runs)

    @property
    def completed(self) -> pd.DataFrame:
        """The test runs that completed."""
        return self.tests[self.tests["status"] == "completed"]

    @property
    def searches(self) -> pd.DataFrame:
        """The runs of the search."""
        return self.runs[self.runs["kind"] == "search"]

    @property
    def metric(self) -> str:
        """The metric that chooses."""
        return next(iter(self.study.metrics))

    def scores(self, metric: str) -> pd.DataFrame:
        """Return a metric of the test runs: a row for each seed, a column for each arm."""
        return scores_of(self.study, self.tests, metric)

    @cached_property
    def missing(self) -> int:
        """Number of test runs that have not ended."""
        ended = self.tests[["arm", "seed"]].drop_duplicates()
        return len(self.study.arms) * len(self.study.seeds) - len(ended)

    @property
    def is_unfinished(self) -> bool:
        """Whether runs are missing."""
        return self.missing > 0 or self.state.get("phase", "complete") != "complete"

    def reference(self, name: str, metric: str) -> dict[str, float]:
        """Return arm -> the metric of its `untrained` student or of its `teacher`."""
        found = [line for line in self.summary.references if line.reference == name]
        return {line.arm: value for line in found if (value := line.values.get(metric)) is not None}

    def ledger(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of the ledger; one that a killed process cut is left out."""
        file = self.folder / "ledger.jsonl"
        text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
        for line in text.split("\n"):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


def measure_of(metric: str) -> Measure:
    """Return a metric's title, unit and direction; a number of a probe has its name alone."""
    return MEASURES.get(metric) or Measure(metric, metric.removeprefix("probes."), "", None, False, ())


def read_material(folder: Path) -> Material:
    """Read the files of a study. Raises UsageError where there is no study with results, DamageError."""
    if not StudyDir.is_study(folder):
        raise UsageError(_no_study(folder))
    study = read_description(folder)
    runs = read_table(folder, "results", study)
    if runs is None:
        raise UsageError(
            f"{folder} has no results yet\nwhy: a study writes its tables when its first phase ends\n"
            f"fix: wait for it, or start it again: neoplug study {folder}"
        )
    runs = _in_order(study, with_arms(study, runs))
    references = read_table(folder, "references", study)
    status, lock = folder / "status.json", folder / "study.lock.json"
    first = runs.drop_duplicates("arm")
    return Material(
        folder=folder,
        study=study,
        runs=runs,
        references=pd.DataFrame() if references is None else references,
        summary=_summary(folder, study, runs, references),
        state=read_json(status, AGAIN) if status.exists() else {},
        lock=read_json(lock, AGAIN) if lock.exists() else {},
        anchors={arm: f"run-{number}" for arm, number in zip(first["arm"], first.index, strict=True)},
    )


def _no_study(folder: Path) -> str:
    """Return why there is no study in a folder, and what to do."""
    if all((folder / name).is_file() for name in RUN_FILES):
        what = f"{folder} is a run, and a report is about a study"
        return f"{what}\nfix: a run has `result.json`, and a model card next to its saved student"
    return f"{folder} is no directory of a study: it has no study.json\nfix: name the --output of `neoplug study`"


def _in_order(study: Study, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs by arm, test runs first, then the search by its values."""
    expected = ["seed", "kind", "status", "reason", "run", "id", "seconds", "tokens", "trainable_parameters"]
    runs = runs.reindex(columns=[*runs.columns, *(name for name in expected if name not in runs)])
    runs = runs.fillna({"reason": "", "run": "", "id": ""})
    place = {arm.name: number for number, arm in enumerate(study.arms)}
    searched = [one.column for one in study.search.keys.values() if one.column in runs]
    order = runs.assign(_arm=runs["arm"].map(place), _test=runs["kind"] != "test")
    columns = ["_arm", "_test", *searched, "seed"]
    return order.sort_values(columns, kind="stable").drop(columns=["_arm", "_test"]).reset_index(drop=True)


def _summary(folder: Path, study: Study, runs: pd.DataFrame, references: pd.DataFrame | None) -> Summary:
    """Return the summary in the study's folder; where there is none of this study, it is computed from the tables."""
    summary, documents = read_summary(folder), folder / "documents.parquet"
    if summary is not None and _is_of(study, summary):
        return summary
    return summarise(study, runs, read_parquet(documents) if documents.exists() else None, references)


def _is_of(study: Study, summary: Summary) -> bool:
    """Return whether a summary has what the study asks for; the study may have been changed since."""
    planned = {
        (contrast.name, metric, arm.name, control.name)
        for contrast in study.contrasts
        for arm, control in contrast.pairs(study.arms)
        for metric in contrast.metrics
    }
    described = {(metric, arm.name) for metric in study.metrics for arm in study.arms}
    return described == {(line.metric, line.arm) for line in summary.arms} and planned == {
        (line.family, line.metric, line.arm, line.control) for line in summary.contrasts
    }
