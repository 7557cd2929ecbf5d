"""From a recipe's name to a checked recipe, all mistakes at once."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError
from neoplug.recipe.loss_weights import Weight
from neoplug.recipe.metric_checks import metric_problems
from neoplug.recipe.paths import make_absolute
from neoplug.recipe.plugin_checks import FoundPlugins, NamedPlugin, check_problems, find_plugins
from neoplug.recipe.schema import PLUGIN_MAPS, SECTIONS, Recipe, field_at, keys_at
from neoplug.recipe.source import (
    from_values,
    gather,
    locate,
    may_be_inherited,
    origin,
    placed,
    reading_order,
    relative_place,
)
from neoplug.recipe.tree import Tree
from neoplug.registry import CORE_KEYS, Entry, Plugins
from neoplug.registry.nested import leaves
from neoplug.registry.options import Known, UnknownKey, build, defaults, type_problems, unknown_key

EITHER = (
    ("train", "max_steps", "num_train_epochs", "how long to train"),
    ("data", "source", "sources", "what to read"),
)


@dataclass(frozen=True, eq=False)
class ResolvedRecipe:
    """A recipe without mistakes, and its plugins, built.

    name        of the recipe: its file's stem
    references  losses that others are calibrated to and that do not train, with their defaults
    weights     loss name -> weight, schedule, calibration
    entries     (section, name) -> where a plugin comes from; sections as in `Plugins`, and "calibrate"
    origin      path in `resolved()` -> "mine.yaml:3", "base.yaml:4", "override" or "default"
    """

    recipe: Recipe
    name: str
    plugins: Plugins
    references: Plugins
    weights: dict[str, Weight]
    entries: dict[tuple[str, str], Entry]
    origin: dict[Key, str]
    values: dict[str, Any] = field(repr=False)
    tree: Tree = field(repr=False)

    @contextmanager
    def marking(self) -> Iterator[None]:
        """Give mistakes that only models and data bring to light their lines in the recipe."""
        try:
            yield
        except RecipeError as error:
            raise RecipeError(_sorted(error.problems, self.tree)) from error

    def resolved(self) -> dict[str, Any]:
        """Return the recipe with all defaults written out and local paths absolute: it can be run from anywhere."""
        copy: dict[str, Any] = json.loads(json.dumps(self.values))
        return copy


def load(
    source: str | Path, overrides: Sequence[str] = (), changes: Mapping[str, Any] | Tree | None = None
) -> ResolvedRecipe:
    """Read and check a recipe; touches no model and no data.

    source     a file, or the name of a shipped recipe
    overrides  "key.path=value", as on the command line; the value is YAML
    changes    the same from Python: nested maps, merged as a recipe that extends `source` would be;
               or a tree, whose places are not overrides
    Raises RecipeError with every mistake, UsageError where there is no such recipe.
    """
    path, name = locate(source, Path.cwd())
    given = changes if isinstance(changes, Tree) else from_values(changes or {})
    tree = gather(path, name, overrides, given)
    problems = [*tree.problems, *_removed(tree), *_both(tree), *_scored_prompts(tree), *make_absolute(tree)]
    recipe, mistyped = _typed(tree)
    found = find_plugins(tree)
    problems += [*mistyped, *found.problems, *(metric_problems(recipe) if recipe else [])]
    problems = [problem for problem in problems if problem.mark or not may_be_inherited(tree, problem.path)]
    if recipe is None or problems:
        raise RecipeError(_sorted(problems, tree))
    plugins, references = _manager(found.named), _manager(found.references)
    if refused := check_problems(found, plugins, references, recipe):
        raise RecipeError(_sorted(refused, tree))
    values, origins = _resolve(recipe, found, tree)
    entries = {("calibrate", plugin.name): plugin.entry for plugin in found.references}
    entries |= {(plugin.section, plugin.name): plugin.entry for plugin in found.named}
    return ResolvedRecipe(recipe, path.stem, plugins, references, found.weights, entries, origins, values, tree)


def _manager(named: list[NamedPlugin]) -> Plugins:
    sections: dict[str, dict[str, Any]] = {}
    for plugin in named:
        sections.setdefault(plugin.section, {})[plugin.name] = plugin.instance
    return Plugins(sections)


def _typed(tree: Tree) -> tuple[Recipe | None, list[Problem]]:
    """Check sections, keys, types and ranges; plugin options are checked by their plugins."""
    try:
        return Recipe.model_validate_json(json.dumps(tree.values)), []
    except ValidationError as error:
        found = type_problems(error, tree.values, (), Known(keys_at, field_at))
        return None, [_advised(_elsewhere(p), tree) for p in found if not p.path or not tree.is_broken(p.path)]


def _elsewhere(problem: Problem) -> Problem:
    """Add to an unknown key where it would be known."""
    key = str(problem.path[-1]) if problem.path else ""
    homes = [f"under `{name}`" for name, section in SECTIONS.items() if key in section.model_fields]
    homes += ["at the top"] if key in Recipe.model_fields else []
    if isinstance(problem, UnknownKey) and homes:
        return replace(problem, fix=f"`{key}` belongs {' or '.join(homes)}")
    return problem


def _advised(problem: Problem, tree: Tree) -> Problem:
    """Suggest the map that was meant where a name, or a list of names, is in its place."""
    path, value = problem.path, tree.get(problem.path)
    if path in PLUGIN_MAPS and isinstance(value, str | list):
        names = [value] if isinstance(value, str) else value
        meant = ", ".join(f"{name}: {{}}" for name in names) if all(isinstance(name, str) for name in names) else ""
    else:
        first = {"teacher": "model", "student": "model", "data": "source"}.get(".".join(map(str, path)))
        meant = f"{first}: {value if value is not None else '...'}" if isinstance(value, str | None) and first else ""
    if value is None and meant:
        return replace(problem, why="", fix=f"add `{path[0]}: {{{meant}}}`")
    return replace(problem, fix=f"write {{{meant}}}") if meant else problem


def _removed(tree: Tree) -> list[Problem]:
    """Refuse nulls for unknown keys: they would hide a misspelling."""
    found = []
    for path, place in tree.removed.items():
        unknown = next((end for end in range(len(path)) if not _is_known(path[:end], path[end])), None)
        if unknown is not None and tree.get(path[: unknown + 1]) is None:
            at = path[: unknown + 1]
            problem = unknown_key(keys_at(path[:unknown]), at)
            found.append(replace(_elsewhere(problem), mark=place.key))
    return found


def _is_known(path: Key, key: str | int) -> bool:
    named = (*PLUGIN_MAPS, ("data", "sources"))
    return path in named or path[:-1] in PLUGIN_MAPS or key in keys_at(path)


def _both(tree: Tree) -> Iterator[Problem]:
    """Report the later of two keys that exclude each other, and leave it out, so that other mistakes show."""
    for section, *keys, purpose in EITHER:
        values = tree.get((section,))
        if not isinstance(values, dict) or any(values.get(key) is None for key in keys):
            continue
        here: list[Key] = [(section, key) for key in values if key in keys]
        first, later = sorted(here, key=lambda path: reading_order(tree.mark(path), tree))
        del values[str(later[1])]
        earlier = relative_place(tree.mark(first), tree.mark(later))
        what = f"`{later[1]}` and `{first[1]}` ({earlier}) both say {purpose}"
        yield Problem(what, fix="keep one; null takes the other away", mark=tree.mark(later))


def _scored_prompts(tree: Tree) -> list[Problem]:
    """Refuse prompts of the teacher's own where the prompts are trained on too."""
    path: Key = ("teacher", "chat_template")
    if not tree.get(path) or tree.get(("data", "train_on")) != "all":
        return []
    what, why = (
        "the teacher has prompts of its own, but `train_on: all` scores the prompts too",
        "only answers are alike",
    )
    return [Problem(what, why, "train_on: answers (or last), or let the teacher read the student's prompts", path)]


def _sorted(found: list[Problem], tree: Tree) -> list[Problem]:
    """Mark problems and order them as a reader meets them, each once."""
    unique = {(p.mark, p.what): p for p in (placed(tree, problem) for problem in found)}
    return sorted(unique.values(), key=lambda problem: reading_order(problem.mark, tree))


def _resolve(recipe: Recipe, found: FoundPlugins, tree: Tree) -> tuple[dict[str, Any], dict[Key, str]]:
    """Return the recipe with all defaults written out, and where each value comes from."""
    values = recipe.model_dump(mode="json", exclude_none=True)
    written: dict[Key, Key] = {}  # path in `values` -> path in the tree
    for path in PLUGIN_MAPS:
        if (section := values if len(path) == 1 else values.get(path[0])) is not None:
            section[path[-1]] = {}
    for plugin in sorted(found.named, key=lambda plugin: plugin.path):
        parents = plugin.path[:-1]
        full_name = _full_name(plugin.name, plugin.entry)
        section = values
        for key in parents:
            section = section[str(key)]
        section[full_name] = _options(plugin, tree.get(plugin.path) or {}, found)
        written[*parents, full_name] = plugin.path
    origins: dict[Key, str] = {}
    for leaf, _ in leaves(values):
        known = next((written[leaf[:end]] + leaf[end:] for end in (2, 3) if leaf[:end] in written), leaf)
        origins[leaf] = origin(tree.places[known].key) if known in tree.places else "default"
    return values, origins


def _full_name(name: str, entry: Entry) -> str:
    """Write a local plugin's name with its full path."""
    return f"{entry.target}{name[name.index('.py:') + 4 + len(entry.name) :]}" if entry.file else name


def _options(plugin: NamedPlugin, given: dict[str, Any], found: FoundPlugins) -> dict[str, Any]:
    """Return a plugin's options with its defaults, as far as a recipe can express them."""
    core = {key: given[key] for key in CORE_KEYS.get(plugin.section, ()) if key in given}
    own = {key: value for key, value in given.items() if key not in core}
    if plugin.section == "loss":
        core = {"weight": found.weights[plugin.name].value, **core}
    if other := core.get("calibrate"):
        losses = [known for known in found.named if known.section == "loss"]
        entries = {known.name: known.entry for known in [*found.references, *losses]}
        core["calibrate"] = _full_name(other, entries[other])
    try:
        full = defaults(plugin.cls) | own
        build(plugin.cls, full)
    except RecipeError:  # a default that its own type refuses
        full = own
    return core | full
