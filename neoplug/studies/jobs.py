"""The jobs of a study: each is one run of an arm, with a seed and the values of the searched keys."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from neoplug.environment.info import version_of
from neoplug.errors import RecipeError
from neoplug.files import content_hash, sha256_of
from neoplug.files.contents import files_below
from neoplug.hookspecs import Role
from neoplug.registry.discovery import SHIPPED
from neoplug.studies.arms import Arm
from neoplug.studies.study import Study, Trial

if TYPE_CHECKING:
    from neoplug.data.ingest.recipe_sources import RecipeSource
    from neoplug.recipe import ResolvedRecipe

Kind = Literal["search", "test"]

DIGITS = 16  # of an id
NO_PART = (
    "seed",
    "output_dir",
    "report_to",
    "trackers",
    "reference",
)  # keys of a recipe that the hash of a trial leaves out
MODEL = ("model", "revision", "adapter_path", "adapter_revision")  # replaced by the content of what they name
SELECT_MODEL = (*MODEL, "trust_remote_code", "self", "cache")  # those that say which model it is
SOURCE = ("source", "revision")
ROLES: tuple[Role, ...] = ("student", "teacher")
LONGEST_PATH = 4_096  # characters; a longer text is no path
_FILE_PLUGIN = re.compile(r"(?P<file>/.+\.py):(?P<name>[A-Za-z_][\w.]*(@[\w-]+)?)", re.DOTALL)


@dataclass(frozen=True)
class Job:
    """One run that a study asks for. It can be pickled; equal jobs have equal ids, in whatever study they are.

    id  the first DIGITS hexadecimal digits of the hash of everything that the result depends on: see `Identities`
    """

    id: str
    arm: Arm
    kind: Kind
    seed: int
    trial: Trial

    def load(self, study: Study) -> ResolvedRecipe:
        """Return the recipe of the run. Raises RecipeError where it has mistakes."""
        return study.resolve(self.arm, self.trial, self.seed)

    def as_dict(self) -> dict[str, Any]:
        """Return the job as plain data: id, arm (its levels), kind, seed, trial."""
        described = {"arm": dict(self.arm.levels), "kind": self.kind, "seed": self.seed, "trial": dict(self.trial)}
        return {"id": self.id, **described}


class Outcome(Protocol):
    """What the search reads of a line of the ledger."""

    @property
    def status(self) -> str:
        """One of completed, diverged, failed, out_of_memory and refused."""

    @property
    def values(self) -> Mapping[str, float]:
        """NAME and validation_NAME of each metric; empty where the run did not complete."""


class Identities:
    """Makes the jobs of a study, with their ids; hashes each model, source of data and file once.

    The id of a job is the hash of its resolved recipe, in which what names a model, data, a plugin's file or another
    file is replaced by what identifies its content, and of neoplug's version. Where the run is written, and the
    trackers that it reports to, have no part in it.

    contents  what the recipes name, as JSON -> what identifies its content
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._prefixes: dict[tuple[str, str], Any] = {}  # of an arm and a trial: the hash so far
        self._jobs: dict[tuple[str, str, Kind, int], Job] = {}
        self.contents: dict[str, Any] = {}

    def job(self, arm: Arm, kind: Kind, seed: int, trial: Trial) -> Job:
        """Return a job. Raises RecipeError where its recipe has mistakes, or a model or data cannot be found."""
        run = (arm.name, json.dumps(trial))
        if (*run, kind, seed) not in self._jobs:
            if run not in self._prefixes:
                self._prefixes[run] = hashlib.sha256(self._record(self._study.resolve(arm, trial, seed)).encode())
            digest = self._prefixes[run].copy()
            digest.update(str(seed).encode())
            self._jobs[*run, kind, seed] = Job(digest.hexdigest()[:DIGITS], arm, kind, seed, trial)
        return self._jobs[*run, kind, seed]

    def _record(self, checked: ResolvedRecipe) -> str:
        """Return everything but the seed that the results of a recipe depend on, as canonical JSON."""
        values = _without(checked.resolved(), NO_PART)
        with checked.marking():
            for role in ROLES:
                if role in values:
                    values[role] = _without(values[role], MODEL) | {"content": self._model(checked, role, values[role])}
            values["data"] = self._data(checked, values["data"])
        third_party = sorted(
            [section, entry.target.rpartition(":")[2], entry.version or entry.sha256]
            for (section, _), entry in checked.entries.items()
            if entry.package != SHIPPED and section not in NO_PART
        )
        record = {"neoplug": version_of("neoplug"), "recipe": self._by_content(values), "plugins": third_party}
        return json.dumps(record, sort_keys=True)

    def _model(self, checked: ResolvedRecipe, role: Role, values: Mapping[str, Any]) -> Any:
        """Return what identifies the model of a role, whose section has these values, and its adapter."""
        from neoplug.runs.inputs import find_models

        def identify() -> Any:
            located = find_models(checked).get(role)
            adapter = located and located.adapter
            return located and [located.identity, adapter and (adapter.revision or adapter.sha256)]

        return self._once({key: values[key] for key in SELECT_MODEL if key in values}, identify)

    def _data(self, checked: ResolvedRecipe, values: dict[str, Any]) -> dict[str, Any]:
        """Return the section `data` with what identifies each source in place of its name."""
        from neoplug.data import check_local_sources
        from neoplug.data.ingest.recipe_sources import eval_source_of, training_sources

        data = checked.recipe.data
        if problems := check_local_sources(data, checked.plugins):
            raise RecipeError(problems)
        sources = training_sources(data, checked.plugins) | {"eval_source": eval_source_of(data, checked.plugins)}
        content = {name: self._source(source, {"data": values}) for name, source in sources.items() if source}
        named = {name: _without(source, SOURCE) for name, source in values.get("sources", {}).items()}
        return _without(values, (*SOURCE, "eval_source", "eval_revision")) | {"sources": named, "content": content}

    def _source(self, source: RecipeSource, values: Any) -> Any:
        """Return what identifies a source of a recipe with these values, in which paths are absolute."""
        named = source.settings.model_dump(exclude_none=True) | {"given": reduce(getitem, source.key, values)}
        return self._once(named, lambda: source.reader.identity())

    def _once(self, named: Mapping[str, Any], identify: Callable[[], Any]) -> Any:
        """Return what identifies the content of what is named; it is read once."""
        key = json.dumps(named, sort_keys=True)
        if key not in self.contents:
            self.contents[key] = identify()
        return self.contents[key]

    def _by_content(self, value: Any) -> Any:
        """Return a value with the hash of its content in place of each absolute path that exists."""
        if isinstance(value, dict):
            return {self._by_content(key): self._by_content(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._by_content(inner) for inner in value]
        if not isinstance(value, str) or not value.startswith("/"):
            return value
        plugin = _FILE_PLUGIN.fullmatch(value)
        path = Path(plugin["file"] if plugin else value)
        if len(value) > LONGEST_PATH or not path.exists():
            return value
        content = self._once({"path": str(path)}, partial(_hash_of, path))
        return f"{content}:{plugin['name']}" if plugin else content


def _hash_of(path: Path) -> str:
    """Return the hash of a file, or of the files in a folder and their names."""
    return (
        sha256_of(path)
        if path.is_file()
        else content_hash({file.relative_to(path).as_posix(): sha256_of(file) for file in files_below(path)})
    )


def _without(values: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}
