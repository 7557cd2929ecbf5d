"""What the directory of a study has, read where neither its study file nor its models and data are at hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from neoplug.errors import DamageError
from neoplug.files import read_json
from neoplug.recipe.source import from_values
from neoplug.registry.consent import Consent
from neoplug.studies.arms import Arm
from neoplug.studies.checks import column_of
from neoplug.studies.directory import AGAIN, NO_TABLE, STUDY, SUMMARY
from neoplug.studies.study import Contrast, Search, Searched, Study
from neoplug.studies.summary_schema import Summary


def read_description(folder: Path) -> Study:
    """Return the study that study.json describes; it has no recipes, so it cannot be run. Raises DamageError."""
    file = folder / STUDY
    facts = read_json(file, AGAIN)
    try:
        study = _study(facts)
        if unknown := {metric for one in study.contrasts for metric in one.metrics} - study.metrics.keys():
            raise ValueError(f"contrasts of other metrics: {unknown}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamageError(file, "is not what neoplug wrote", AGAIN) from error
    return study


def _study(facts: Mapping[str, Any]) -> Study:
    search, nothing = facts["search"], from_values({})
    return Study(
        name=str(facts["name"]),
        file=Path(facts["file"]),
        source=str(facts["file"]),
        overrides=tuple(map(str, facts["overrides"])),
        axes={axis: tuple(map(str, levels)) for axis, levels in facts["axes"].items()},
        arms=tuple(Arm({axis: str(level) for axis, level in levels.items()}) for levels in facts["arms"]),
        seeds=tuple(facts["seeds"]),
        search=Search(
            {
                key: Searched((), column_of(key, search["keys"]), tuple(one["values"]), one["extend"], one["scale"])
                for key, one in search["keys"].items()
            },
            tuple(search["seeds"]),
        ),
        metrics=dict(facts["metrics"]),
        contrasts=tuple(
            Contrast(
                one["name"],
                one["control"],
                {axis: tuple(levels) for axis, levels in one["arms"].items()},
                tuple(one["metrics"]),
            )
            for one in facts["contrasts"]
        ),
        executor=next(iter((facts.get("executor") or {"local": {}}).items())),
        match=facts["match"],
        keep=facts["keep"],
        base=nothing,
        tree=nothing,
        consent=Consent(),
    )


def read_table(folder: Path, name: str, study: Study) -> pd.DataFrame | None:
    """Return a table of the study, from its parquet file or else from its CSV file; None where it has neither.

    Raises DamageError.
    """
    file = next((path for end in ("parquet", "csv") if (path := folder / f"{name}.{end}").is_file()), None)
    if file is None:
        return None
    texts = dict.fromkeys((*study.axes, "kind", "status", "reason", "run", "id", "reference"), str)
    try:
        if file.suffix == ".parquet":
            frame = read_parquet(file)
        else:
            frame = pd.read_csv(file, dtype=texts, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise DamageError(file, NO_TABLE, AGAIN) from error
    needed = {*study.axes, *(("seed", "kind", "status", "id") if name == "results" else ("reference",))}
    if not frame.empty and not needed <= set(frame):
        raise DamageError(file, NO_TABLE, AGAIN)
    return frame.fillna({column: "" for column in ("reason", "run", "id") if column in frame})


def read_parquet(file: Path) -> pd.DataFrame:
    """Return a table. Raises DamageError."""
    try:
        return pd.read_parquet(file)
    except (OSError, ValueError) as error:  # pyarrow's errors are among them
        raise DamageError(file, NO_TABLE, AGAIN) from error


def read_summary(folder: Path) -> Summary | None:
    """Return the content of summary.json; None where there is none. Raises DamageError."""
    file = folder / SUMMARY
    try:
        return Summary.model_validate(read_json(file, AGAIN)) if file.exists() else None
    except ValidationError as error:
        raise DamageError(file, "is not what neoplug wrote", AGAIN) from error
