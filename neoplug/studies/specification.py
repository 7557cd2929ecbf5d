"""A study file read and checked, with every arm's recipe, before the first run: all mistakes are reported at once."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from pydantic import ValidationError

from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError
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
from neoplug.recipe.tree import BROKEN, Tree, plain
from neoplug.recipe.yaml_reader import read as read_yaml
from neoplug.registry.consent import Consent
from neoplug.registry.measures import RANKING
from neoplug.registry.options import type_problems
from neoplug.studies.arms import OWNED
from neoplug.studies.checks import FEW_SEEDS, Checks, column_of, contrast_name
from neoplug.studies.recipes import recipe_problems
from neoplug.studies.schema import StudyFile, field_at, keys_at
from neoplug.studies.study import Contrast, Search, Searched, Study

logger = logging.getLogger(__name__)

# Valid values in place of sections with mistakes, while the others are checked.
_STAND_INS = {"base": "-", "axes": {"-": {"-": {}}}, "seeds": [0], "metrics": {next(iter(RANKING)): {}}}


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
    tree = _read_tree(path, name)
    file, faulty, problems = _validated(tree)
    base, unread = _base(tree, path, name, overrides) if "base" not in faulty else (None, [])
    checks = Checks(file, tree, base or from_values({}), faulty)
    problems += [*unread, *checks.problems]
    study = _study(file, path, overrides, base or tree, tree, consent, checks)
    if base and checks.has_arms:
        problems += recipe_problems(study, file.metrics if "metrics" not in faulty else ())
    elif base:
        problems += base.problems
    if problems:
        unique = {(each.mark, each.what): each for each in (marked(tree, problem) for problem in problems)}
        raise RecipeError(sorted(unique.values(), key=lambda problem: reading_order(problem.mark, tree)))
    if len(study.seeds) < FEW_SEEDS:
        logger.warning("%s has %d seeds: with fewer than %d little can be said", name, len(study.seeds), FEW_SEEDS)
    return study


def _read_tree(path: Path, name: str) -> Tree:
    """Return the tree of a study file. Raises RecipeError where reading it ended early, or it is no map."""
    tree = read_yaml(read_file(path, name))
    if tree.root.value is BROKEN:
        raise RecipeError(tree.problems)
    if not isinstance(tree.root.value, dict):
        what = "the study is empty" if tree.root.value is None else "a study is a map of sections"
        raise RecipeError([Problem(what, fix="begin with `base: RECIPE`", mark=tree.root.mark)])
    return tree


def _validated(tree: Tree) -> tuple[StudyFile, set[str], list[Problem]]:
    """Return the study file with stand-ins for sections that have mistakes, their names, and all mistakes so far."""
    values = plain(tree.root, sort=False)
    try:
        return StudyFile.model_validate_json(json.dumps(values)), set(), [*tree.problems]
    except ValidationError as error:
        problems = [
            problem
            for problem in type_problems(error, values, (), keys_at, field_at)
            if not problem.path or not tree.is_broken(problem.path)
        ]
        faulty = {str(detail["loc"][0]) for detail in error.errors(include_url=False)}
    good = {key: value for key, value in values.items() if key not in faulty}
    return StudyFile.model_validate_json(json.dumps(_STAND_INS | good)), faulty, [*tree.problems, *problems]


def _base(tree: Tree, path: Path, name: str, overrides: Sequence[str]) -> tuple[Tree | None, list[Problem]]:
    """Return the tree of the base, None where it cannot be read, and why; or what of it a study does not take."""
    try:
        base = _read_base(tree, path, name, overrides)
    except RecipeError as error:
        key: Key = ("base", "extends") if tree.node(("base", "extends")) else ("base",)
        return None, [each if each.mark else replace(each, path=key) for each in error.problems]
    return base, _set_by_studies(base, name)


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
        source=next((name for name, known in shipped().items() if known == path), str(path.resolve())),
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
