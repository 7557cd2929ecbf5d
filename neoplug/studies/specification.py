"""A study file: its schema, and the study that it describes, checked with every arm's recipe before the first run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from neoplug.recipe import ResolvedRecipe
from neoplug.studies.arms import Arm
from neoplug.studies.jobs import Trial


@dataclass(frozen=True)
class Searched:
    """One searched key.

    values  its grid, ascending and distinct
    extend  how many extensions it may have
    scale   axis -> level -> factor of the values for arms of that level
    """

    values: tuple[float, ...]
    extend: int = 0
    scale: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Search:
    """The search. `seeds`: the tuning seeds, none of which is a test seed; `keys`: by the key as the file writes it."""

    keys: Mapping[str, Searched]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Contrast:
    """One family of planned comparisons. See `pairs` for which arms are compared."""

    name: str
    control: Mapping[str, str]
    arms: Mapping[str, tuple[str, ...]]
    metrics: tuple[str, ...]

    def pairs(self, arms: Sequence[Arm]) -> list[tuple[Arm, Arm]]:
        """Return (arm, control) for each comparison: axes that `control` leaves out have the same level in both."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Study:
    """A valid study.

    name       given in the file, else the stem of the file's name
    axes       axis -> its levels, in the order of the file; levels that only extra arms have come last
    arms       every arm, in the order of the product; extra arms last
    seeds      of the test runs
    search     None: every run has the rates of its recipe
    metrics    name -> margin or None, ordered; the first one chooses
    contrasts  one for each family
    executor   the kind (`local`, `slurm`, `ray`, `print`) and its options
    match      "parameters": every arm's adapter has the size at which it has the trainable parameters of the first
    keep       which run folders stay
    """

    name: str
    axes: Mapping[str, tuple[str, ...]]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    search: Search | None
    metrics: Mapping[str, float | None]
    contrasts: tuple[Contrast, ...]
    executor: tuple[str, Mapping[str, Any]]
    match: Literal["parameters"] | None
    keep: Literal["best", "all", "none"]

    def resolve(self, arm: Arm, trial: Trial, seed: int) -> ResolvedRecipe:
        """Return the recipe of a run. Raises RecipeError where it has mistakes."""
        raise NotImplementedError

    def resolved(self) -> dict[str, Any]:
        """Return the study as plain data for DIR/study.yaml: it reads from any folder, overrides included."""
        raise NotImplementedError


def shipped() -> dict[str, Path]:
    """Return the studies that neoplug ships, by name."""
    raise NotImplementedError


def read(source: str | Path, overrides: Sequence[str] = (), *, trust: Sequence[str | Path] = ()) -> Study:
    """Read and check a study file, given as a file or by the name of a shipped one, and the recipe of every arm.

    overrides  "key.path=value": change the base recipe of all arms
    trust      code that may run, as `--trust` names it
    Raises RecipeError with every mistake of the file and of the recipes.
    """
    raise NotImplementedError
