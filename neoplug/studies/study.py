"""A valid study: its arms, its search, what it compares; and the recipe of each of its runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from neoplug.errors import Path as Key
from neoplug.recipe.loading import ResolvedRecipe, resolve
from neoplug.recipe.tree import Node, Tree, changed
from neoplug.registry.consent import Consent
from neoplug.studies.arms import Arm, has_levels

Trial = Mapping[str, float]  # searched key, as the study file writes it -> value


@dataclass(frozen=True)
class Searched:
    """One searched key.

    path    the key in a recipe
    column  its name in the table of results
    values  its grid, ascending
    extend  how many extensions it may have
    scale   axis -> level -> factor of the values for arms of that level
    """

    path: Key
    column: str
    values: tuple[float, ...]
    extend: int = 0
    scale: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Search:
    """The search. `keys`: by the key as the file writes it; `seeds`: the tuning seeds, none of which is a test seed.

    Both are empty where every run has the values of its recipe.
    """

    keys: Mapping[str, Searched]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Contrast:
    """One family of planned comparisons: see `pairs`. `arms`: axis -> the levels that are compared; none: all."""

    name: str
    control: Mapping[str, str]
    arms: Mapping[str, tuple[str, ...]]
    metrics: tuple[str, ...]

    def pairs(self, arms: Sequence[Arm]) -> list[tuple[Arm, Arm]]:
        """Return (arm, control) for each comparison: axes that `control` leaves out have the same level in both."""
        by_levels = {tuple(arm.levels.items()): arm for arm in arms}
        controls = ((arm, by_levels.get(tuple({**arm.levels, **self.control}.items()))) for arm in arms)
        return [(arm, other) for arm, other in controls if other and other != arm and has_levels(arm.levels, self.arms)]


@dataclass(frozen=True, eq=False)
class Study:
    """A valid study.

    name       given in the file, else the stem of the file's name
    file       the study file
    source     what names it in a command, on any machine where it is shipped: its name; else the path of the file
    overrides  changes to the base, as on the command line
    axes       axis -> its levels, in the order of the file; levels that only further arms have come last
    arms       every arm, in the order of the product; further arms last
    seeds      of the test runs
    search     what is tuned for each arm; it may have no keys
    metrics    name -> margin or None, ordered; the first one chooses
    contrasts  one for each family
    executor   the kind (`local`, `slurm`, `ray`, `print`) and its options
    match      "parameters": every adapter has the size at which it trains as many parameters as that of the first arm
    keep       of which runs the folder stays
    base       the recipe that the arms change
    tree       of the study file
    """

    name: str
    file: Path
    source: str
    overrides: tuple[str, ...]
    axes: Mapping[str, tuple[str, ...]]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    search: Search
    metrics: Mapping[str, float | None]
    contrasts: tuple[Contrast, ...]
    executor: tuple[str, Mapping[str, Any]]
    match: Literal["parameters"] | None
    keep: Literal["best", "all", "none"]
    base: Tree = field(repr=False)
    tree: Tree = field(repr=False)
    consent: Consent = field(repr=False)

    def resolve(self, arm: Arm, trial: Trial, seed: int) -> ResolvedRecipe:
        """Return the recipe of a run. Raises RecipeError where it has mistakes."""
        searched = self.search.keys
        values = [(searched[key].path, self._node(("search", key, "values"), value)) for key, value in trial.items()]
        changes = [*arm.changes, *values, (("seed",), self._node(("seeds",), seed))]
        return resolve(changed(self.base, changes), self.name, self.consent)

    def _node(self, path: Key, value: float) -> Node:
        """Return the node of a value that belongs to the list at `path` of the study file; its key is the list's."""
        node = self.tree.nearest(path)
        item = next((item for _, item in node.items() if item.value == value), node)
        return replace(item, value=value, key=self.tree.nearest(path[:2]).key)

    def as_dict(self) -> dict[str, Any]:
        """Return the study as plain data, for people and for other programs."""
        search = {
            "seeds": list(self.search.seeds),
            "keys": {
                key: {"values": list(one.values), "extend": one.extend, "scale": one.scale}
                for key, one in self.search.keys.items()
            },
        }
        return {
            "format": 1,
            "name": self.name,
            "file": self.source,
            "overrides": list(self.overrides),
            "axes": {axis: list(levels) for axis, levels in self.axes.items()},
            "arms": [dict(arm.levels) for arm in self.arms],
            "seeds": list(self.seeds),
            "search": search,
            "metrics": dict(self.metrics),
            "contrasts": [
                {"name": one.name, "control": one.control, "arms": one.arms, "metrics": list(one.metrics)}
                for one in self.contrasts
            ],
            "executor": {self.executor[0]: dict(self.executor[1])},
            "match": self.match,
            "keep": self.keep,
        }
