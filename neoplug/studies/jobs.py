"""The jobs of a study: each is one run of an arm, with a seed and the values of the searched keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from neoplug.studies.arms import Arm

if TYPE_CHECKING:
    from neoplug.recipe import ResolvedRecipe
    from neoplug.studies.specification import Study

Kind = Literal["search", "test"]
Trial = Mapping[str, float]  # searched key, as the study file writes it -> value


@dataclass(frozen=True)
class Job:
    """One run that a study asks for. It can be pickled; equal jobs have equal ids.

    id  the first 16 hexadecimal digits of the SHA-256 of everything that its result depends on: see `Identities`
    """

    id: str
    arm: Arm
    kind: Kind
    seed: int
    trial: Trial

    def load(self, study: Study) -> ResolvedRecipe:
        """Return the recipe of the run. Raises RecipeError where it has mistakes."""
        raise NotImplementedError

    def as_dict(self) -> dict[str, Any]:
        """Return the job as plain data: id, arm (its levels), kind, seed, trial."""
        return {"id": self.id, "arm": dict(self.arm.levels), "kind": self.kind, "seed": self.seed,
                "trial": dict(self.trial)}  # fmt: skip


class Outcome(Protocol):
    """What the search reads of a line of the ledger."""

    @property
    def status(self) -> str:
        """One of completed, diverged, failed, out_of_memory and refused."""

    @property
    def values(self) -> Mapping[str, float]:
        """NAME and validation_NAME of each metric; empty where the run did not complete."""


class Identities:
    """The ids of a study's jobs; hashes each model, source of data and plugin file once.

    contents  of everything that the recipes of the arms name, as study.lock.json records it
    """

    contents: Mapping[str, Any]

    def __init__(self, study: Study) -> None:
        raise NotImplementedError

    def job(self, arm: Arm, kind: Kind, seed: int, trial: Trial) -> Job:
        """Return a job with its id. Raises RecipeError where its recipe, a model or the data cannot be used."""
        raise NotImplementedError
