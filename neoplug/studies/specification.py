"""A study file read and checked, with every arm's recipe, before the first run: all mistakes are reported at once."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError
from neoplug.recipe.limits import Size
from neoplug.recipe.loading import ResolvedRecipe, resolve
from neoplug.recipe.source import (
    OVERRIDE,
    from_values,
    is_recipe,
    locate,
    marked,
    read_file,
    read_recipe,
    reading_order,
)
from neoplug.recipe.tree import BROKEN, Node, Tree, changed, plain
from neoplug.recipe.yaml_reader import read as read_yaml
from neoplug.registry.consent import Consent
from neoplug.registry.options import type_problems
from neoplug.studies.arms import OWNED, Arm, has_levels
from neoplug.studies.checks import FEW_SEEDS, Checks, column_of, contrast_name
from neoplug.studies.jobs import Trial
from neoplug.studies.recipes import recipe_problems
from neoplug.studies.schema import StudyFile, field_at, keys_at

logger = logging.getLogger(__name__)

# Valid values in place of sections with mistakes, while the others are checked.
_STAND_INS = {"base": "-", "axes": {"-": {"-": {}}}, "seeds": [0], "metrics": {"cross_entropy": {}}}


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
            "file": str(self.file),
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


def shipped() -> dict[str, Path]:
    """Return the studies that neoplug ships, by name."""
    folder = Path(str(files("neoplug_recipes"))) / "studies"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def read(source: str | Path, overrides: Sequence[str] = (), *, trust: Sequence[str | Path] = ()) -> Study:
    """Read and check a study file, given as a file or by the name of a shipped one, and the recipe of every arm.

    overrides  "key.path=value": change the base recipe of all arms
    trust      code that may run, as `--trust` names it
    Raises RecipeError with every mistake of the file and of the recipes.
    """
    path, name = locate(source, Path.cwd(), shipped(), "study")
    consent = Consent(None if path in shipped().values() else path, trust)
    size = Size()
    tree = _read_tree(path, name, size)
    file, faulty, mistyped = _validated(tree)
    problems = [*tree.problems, *mistyped]
    base = from_values({})
    if "base" not in faulty:
        try:
            base = _read_base(tree, path, name, overrides)
            problems += _set_by_studies(base, name)
        except RecipeError as error:
            key = ("base", "extends") if tree.node(("base", "extends")) else ("base",)
            problems += [each if each.mark else replace(each, path=key) for each in error.problems]
            faulty |= {"base"}
    checks = Checks(file, tree, base, faulty)
    problems += checks.problems
    study = _study(file, path, overrides, base, tree, consent, checks)
    if checks.has_arms and "base" not in faulty:
        problems += recipe_problems(study, tree, file.metrics if "metrics" not in faulty else ())
    else:
        problems += base.problems
    if problems:
        unique = {(each.mark, each.what): each for each in (marked(tree, problem) for problem in problems)}
        raise RecipeError(sorted(unique.values(), key=lambda problem: reading_order(problem.mark, tree)))
    if len(study.seeds) < FEW_SEEDS:
        logger.warning("%s has %d seeds: with fewer than %d little can be said", name, len(study.seeds), FEW_SEEDS)
    return study


def _read_tree(path: Path, name: str, size: Size) -> Tree:
    """Return the tree of a study file. Raises RecipeError where reading it ended early, or it is no map."""
    tree = read_yaml(read_file(path, name), size)
    if tree.root.value is BROKEN:
        raise RecipeError(tree.problems)
    if not isinstance(tree.root.value, dict):
        what = "the study is empty" if tree.root.value is None else "a study is a map of sections"
        raise RecipeError([Problem(what, fix="begin with `base: RECIPE`", mark=tree.root.mark)])
    return tree


def _validated(tree: Tree) -> tuple[StudyFile, set[str], list[Problem]]:
    """Return the study file with stand-ins for the sections that have mistakes, their names, and the mistakes."""
    values = plain(tree.root, sort=False)
    try:
        return StudyFile.model_validate_json(json.dumps(values)), set(), []
    except ValidationError as error:
        problems = [
            problem
            for problem in type_problems(error, values, (), keys_at, field_at)
            if not problem.path or not tree.is_broken(problem.path)
        ]
        faulty = {str(detail["loc"][0]) for detail in error.errors(include_url=False)}
    good = {key: value for key, value in values.items() if key not in faulty}
    return StudyFile.model_validate_json(json.dumps(_STAND_INS | good)), faulty, problems


def _read_base(tree: Tree, path: Path, name: str, overrides: Sequence[str]) -> Tree:
    """Return the tree of the base recipe, which need not be a whole one. Raises RecipeError."""
    node = tree.nearest(("base",))
    own = dict(node.value) if isinstance(node.value, dict) else {"extends": node}
    extends = own.pop("extends", None)
    if extends is None or not isinstance(extends.value, str):
        raise RecipeError([Problem("`base` is the name of a recipe, or a map that `extends` one")])
    file, shown = locate(extends.value, path.resolve().parent)
    shown = str(Path(name).parent / shown)
    text = read_file(file, shown)
    if not is_recipe(read_yaml(text), text):
        why = "few of its keys are those of a recipe, so it is not quoted"
        raise RecipeError([Problem(f"`{extends.value}` is no recipe", why)])
    return read_recipe(file, shown, overrides, Tree(replace(node, value=own)))


def _set_by_studies(base: Tree, name: str) -> list[Problem]:
    """Return a problem for each key that a study sets itself, where an override or the study file has it."""
    nodes = [(key, base.node((key,))) for key in ("seed", "output_dir")]
    given = [(key, node.key) for key, node in nodes if node and node.key.file in (OVERRIDE, name)]
    return [Problem(f"a study does not take `{key}`", OWNED[key], mark=mark) for key, mark in given]


def _study(
    file: StudyFile, path: Path, overrides: Sequence[str], base: Tree, tree: Tree, consent: Consent, checks: Checks
) -> Study:
    """Return the study that a valid file describes."""
    kind = file.executor.kind
    options = getattr(file.executor, kind)
    seeds = next((one.seeds for one in file.search.values() if one.seeds), [])
    keys = {
        key: Searched(path, column_of(key, [*file.search]), tuple(one.values), one.extend, one.scale)
        for key, path in checks.searched.items()
        if (one := file.search[key])
    }
    return Study(
        name=file.name or path.stem,
        file=path.resolve(),
        overrides=tuple(overrides),
        axes={axis: tuple(levels) for axis, levels in checks.arms.axes.items()},
        arms=tuple(checks.arms.arms),
        seeds=tuple(file.seeds),
        search=Search(keys, tuple(seeds)),
        metrics={name: metric.margin for name, metric in file.metrics.items()},
        contrasts=tuple(
            Contrast(
                contrast_name(one),
                one.control,
                {axis: (levels,) if isinstance(levels, str) else tuple(levels) for axis, levels in one.arms.items()},
                tuple(one.metrics),
            )
            for one in file.contrasts
        ),
        executor=(kind, options if isinstance(options, dict) else options.model_dump()),
        match=file.match,
        keep=file.keep,
        base=base,
        tree=tree,
        consent=consent,
    )
