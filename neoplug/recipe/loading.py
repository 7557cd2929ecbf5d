"""Loading of a recipe: read, merge, validate, build the plugins; all mistakes are reported at once."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError
from neoplug.recipe.cache_checks import cache_problems
from neoplug.recipe.code_checks import code_problems
from neoplug.recipe.limits import MAX_PLUGINS, MAX_SOURCES
from neoplug.recipe.loss_weights import Weight
from neoplug.recipe.metric_checks import metric_problems
from neoplug.recipe.paths import make_absolute, output_problems
from neoplug.recipe.plugin_checks import FoundPlugins, NamedPlugin, check_problems, find_plugins
from neoplug.recipe.schema import (
    NAMED_SECTIONS,
    PLUGIN_MAPS,
    SECTIONS,
    Recipe,
    Train,
    field_at,
    fields_of,
    is_plugin_map,
    keys_at,
)
from neoplug.recipe.shorthands import LR_SCHEDULER_TYPE
from neoplug.recipe.source import (
    from_values,
    locate,
    marked,
    may_be_inherited,
    origin,
    read_recipe,
    reading_order,
    relative_place,
    shipped,
)
from neoplug.recipe.teacher_checks import teacher_problems
from neoplug.recipe.tree import Tree
from neoplug.registry import CORE_KEYS, Entry, Plugins
from neoplug.registry.consent import Consent
from neoplug.registry.nested import leaves
from neoplug.registry.options import UnknownKey, build, defaults, type_problems, unknown_key

EXCLUSIVE_KEYS = (
    ("train", "max_steps", "num_train_epochs", "how long to train"),
    ("data", "source", "sources", "what to read"),
    ("teacher", "model", "self", "what the teacher is"),
)
FIRST_KEYS: dict[Key, str] = {("teacher",): "model", ("student",): "model", ("data",): "source"}


@dataclass(frozen=True, eq=False)
class ResolvedRecipe:
    """A valid recipe and the instances of its plugins.

    name        the stem of the recipe's file
    references  losses that only serve as calibration targets: not trained on, built with their defaults
    weights     loss name -> weight, schedule, calibration
    entries     (section, name) -> where a plugin is imported from; sections as in `Plugins`, and "calibrate"
    origin      path in `resolved()` -> "mine.yaml:3", "base.yaml:4", "override" or "default"
    consent     the user's consent to the code that the recipe names
    """

    recipe: Recipe
    name: str
    plugins: Plugins
    references: Plugins
    weights: dict[str, Weight]
    entries: dict[tuple[str, str], Entry]
    origin: dict[Key, str]
    consent: Consent
    values: dict[str, Any] = field(repr=False)
    tree: Tree = field(repr=False)

    @contextmanager
    def marking(self) -> Iterator[None]:
        """Add marks to the problems of a RecipeError raised in the block, as by checks of models and data."""
        try:
            yield
        except RecipeError as error:
            raise RecipeError(_sorted(error.problems, self.tree)) from error

    def pinned(self, pinned: Mapping[Key, Any]) -> "ResolvedRecipe":
        """Return the recipe with the values at these paths in place of its own: revisions, a date, or sizes."""
        recipe, values = self.recipe, self.values
        for path, value in pinned.items():
            recipe, values = _replaced(recipe, path, value), _replaced(values, path, value)
        return replace(self, recipe=recipe, values=values)

    def resolved(self) -> dict[str, Any]:
        """Return a copy of the recipe with all defaults and with absolute local paths: it loads from any folder."""
        return deepcopy(self.values)


def _replaced(section: Any, path: Key, value: Any) -> Any:
    """Return a section, or the map of one, with the value at `path` replaced."""
    key, *below = path
    if below:
        inner = section[key] if isinstance(section, dict) else getattr(section, str(key))
        value = _replaced(inner, tuple(below), value)
    return section | {key: value} if isinstance(section, dict) else section.model_copy(update={str(key): value})


def load(
    source: str | Path,
    overrides: Sequence[str] = (),
    changes: Mapping[str, Any] | Tree | None = None,
    *,
    trust: Sequence[str | Path] = (),
) -> ResolvedRecipe:
    """Read and validate a recipe and build its plugins; loads no model and no data.

    source     a file, or the name of a shipped recipe
    overrides  "key.path=value", as on the command line; the value is YAML
    changes    nested maps, merged as a recipe that extends `source` would be: messages show them as overrides;
               a Tree keeps its own places in messages
    trust      code that may run, as `--trust` names it
    Raises RecipeError with every mistake, also where there is no such recipe. A plugin that no installed package
    registers is imported only where the recipe has no other mistake, so that its own mistakes come alone.
    """
    path, name = locate(source, Path.cwd())
    consent = Consent(None if path in shipped().values() else path, trust)
    tree = read_recipe(path, name, overrides, changes if isinstance(changes, Tree) else from_values(changes or {}))
    return resolve(tree, path.stem, consent)


def resolve(tree: Tree, name: str, consent: Consent) -> ResolvedRecipe:
    """Validate a recipe that is read and merged, and build its plugins; `load` does this with a file.

    Raises RecipeError with every mistake.
    """
    for plugins in map(tree.get, tree.plugin_maps):
        if isinstance(plugins, dict):  # `name:` is `name: {}`, a plugin without options
            plugins |= {plugin: {} for plugin, options in plugins.items() if options is None}
    if too_many := list(_too_many(tree)):
        raise RecipeError(_sorted([*tree.problems, *too_many], tree))
    problems = [
        *tree.problems,
        *_unknown_nulls(tree),
        *_exclusive_keys(tree),
        *make_absolute(tree),
        *output_problems(tree),
    ]
    recipe, mistyped = _validated(tree)
    found = find_plugins(tree, only_installed=True)
    problems += [*mistyped, *found.problems, *teacher_problems(tree, found)]
    problems += [*cache_problems(found.named, found.references), *(metric_problems(recipe) if recipe else [])]
    problems += code_problems(tree, consent, found)
    _refuse(problems, tree)
    if not all(entry.is_installed for entry in found.entries.values()):
        found = find_plugins(tree, only_installed=False)
        problems = [*found.problems, *teacher_problems(tree, found), *cache_problems(found.named, found.references)]
        _refuse([*problems, *code_problems(tree, consent, found)], tree)
    assert recipe is not None
    plugins, references = _by_section(found.named), _by_section(found.references)
    if refused := check_problems(found, plugins, references, recipe):
        raise RecipeError(_sorted(refused, tree))
    values, origins = _resolve(recipe, found, tree)
    entries = {("calibrate", plugin.name): plugin.entry for plugin in found.references}
    entries |= {(plugin.section, plugin.name): plugin.entry for plugin in found.named}
    return ResolvedRecipe(recipe, name, plugins, references, found.weights, entries, origins, consent, values, tree)


def _refuse(problems: list[Problem], tree: Tree) -> None:
    """Raise RecipeError where there are problems, but for those that an unreadable parent may solve."""
    if found := [problem for problem in problems if problem.mark or not may_be_inherited(tree, problem.path)]:
        raise RecipeError(_sorted(found, tree))


def _by_section(named: list[NamedPlugin]) -> Plugins:
    sections: dict[str, dict[str, Any]] = {}
    for plugin in named:
        sections.setdefault(plugin.section, {})[plugin.name] = plugin.instance
    return Plugins(sections)


def _too_many(tree: Tree) -> Iterator[Problem]:
    """Yield a problem where there are more plugins or sources than a recipe may have; each is looked up later."""
    counts = {path: len(plugins) for path in PLUGIN_MAPS if isinstance(plugins := tree.get(path), dict)}
    if sum(counts.values()) > MAX_PLUGINS:
        largest = max(counts, key=lambda path: counts[path])
        yield Problem(f"more than {MAX_PLUGINS} plugins", path=largest)
    sources = tree.get(("data", "sources"))
    if isinstance(sources, dict) and len(sources) > MAX_SOURCES:
        what = f"more than {MAX_SOURCES:,} sources"
        yield Problem(what, fix="name a folder, or a pattern such as `data/*.jsonl`", path=("data", "sources"))


def _validated(tree: Tree) -> tuple[Recipe | None, list[Problem]]:
    """Validate sections, keys, types and ranges; `find_plugins` validates the options of plugins."""
    try:
        return Recipe.model_validate_json(json.dumps(tree.values)), []
    except ValidationError as error:
        found = type_problems(error, tree.values, (), keys_at, field_at)
        return None, [
            _suggest_map(_suggest_section(p), tree) for p in found if not p.path or not tree.is_broken(p.path)
        ]


def _suggest_section(problem: Problem) -> Problem:
    """Return the problem of an unknown key with the sections that have this key as the fix; others unchanged."""
    key = str(problem.path[-1]) if problem.path else ""
    homes = [f"under `{name}`" for name, section in SECTIONS.items() if key in fields_of(section)]
    homes += ["at the top"] if key in Recipe.model_fields else []
    if isinstance(problem, UnknownKey) and homes:
        return replace(problem, fix=f"`{key}` belongs {' or '.join(homes)}")
    return problem


def _suggest_map(problem: Problem, tree: Tree) -> Problem:
    """Return the problem with the intended map as the fix where the recipe has a name, or a list of names, instead."""
    path, value = problem.path, tree.get(problem.path)
    names = [value] if isinstance(value, str) else value
    if path in PLUGIN_MAPS and isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        return replace(problem, fix=f"write {{{', '.join(f'{name}: {{}}' for name in names)}}}")
    key = FIRST_KEYS.get(path)
    if key and value is None:
        return replace(problem, why="", fix=f"add `{path[0]}: {{{key}: ...}}`")
    return replace(problem, fix=f"write {{{key}: {value}}}") if key and isinstance(value, str) else problem


def _unknown_nulls(tree: Tree) -> Iterator[Problem]:
    """Yield a problem for each null whose key is unknown: removing nothing, it would hide a misspelling."""
    for path, null in tree.removed.items():
        prefixes = (path[:length] for length in range(1, len(path) + 1))
        unknown = next((prefix for prefix in prefixes if not _is_known(prefix)), None)
        if unknown and tree.get(unknown) is None:
            problem = _suggest_section(unknown_key(keys_at(unknown[:-1]), unknown))
            yield replace(problem, mark=null.key)


def _is_known(path: Key) -> bool:
    """Return whether a recipe may have a key at `path`; names of plugins, sources, metrics, and options are free."""
    *parents, key = path
    has_free_names = is_plugin_map(tuple(parents)) or tuple(parents) in NAMED_SECTIONS or is_plugin_map(path[:-2])
    return has_free_names or key in keys_at(path[:-1])


def _exclusive_keys(tree: Tree) -> Iterator[Problem]:
    """Yield a problem for the later of two mutually exclusive keys, and remove it: validation then sees only one."""
    for section, *keys, purpose in EXCLUSIVE_KEYS:
        values = tree.get((section,))
        if not isinstance(values, dict) or any(values.get(key) is None for key in keys):
            continue
        marks = {key: tree.mark((section, key)) for key in sorted(keys)}
        first, later = sorted(marks, key=lambda key: reading_order(marks[key], tree))
        del values[later]
        what = f"`{later}` and `{first}` ({relative_place(marks[first], marks[later])}) both set {purpose}"
        yield Problem(what, fix="keep one; null removes the other", mark=marks[later])


def _sorted(found: list[Problem], tree: Tree) -> list[Problem]:
    """Return the distinct problems with their marks, in the order of the text."""
    unique = {(p.mark, p.what): p for p in (marked(tree, problem) for problem in found)}
    return sorted(unique.values(), key=lambda problem: reading_order(problem.mark, tree))


def _resolve(recipe: Recipe, found: FoundPlugins, tree: Tree) -> tuple[dict[str, Any], dict[Key, str]]:
    """Return the recipe with all defaults, and the origin of each value."""
    values = recipe.model_dump(mode="json", exclude_none=True, by_alias=True)
    in_tree: dict[Key, Key] = {}  # path of a plugin in `values`, by its full name -> in the tree
    for plugin_map in tree.plugin_maps:
        *parents, key = plugin_map
        section: Any = values
        for parent in parents:
            section = (section or {}).get(parent)
        if section is None:
            continue
        section[key] = {}
        for plugin in sorted(found.named, key=lambda plugin: plugin.name):
            if plugin.path[:-1] == plugin_map:
                full_name = _full_name(plugin.name, plugin.entry)
                section[key][full_name] = _options(plugin, tree.get(plugin.path) or {}, found)
                in_tree[*plugin_map, full_name] = plugin.path
            elif plugin.path == LR_SCHEDULER_TYPE:
                train = values["train"] | {"lr_scheduler_type": _full_name(plugin.name, plugin.entry)}
                values["train"] = {key: train[key] for key in Train.model_fields if key in train}  # in its order
    origins: dict[Key, str] = {}
    for leaf, _ in leaves(values):
        path = next((in_tree[leaf[:end]] + leaf[end:] for end in (2, 3, 5) if leaf[:end] in in_tree), leaf)
        origins[leaf] = origin(tree.key_mark(path))
    return values, origins


def _full_name(name: str, entry: Entry) -> str:
    """Return a plugin's name, with the absolute path where it is in a file: ./x.py:Class@tag -> /a/x.py:Class@tag."""
    return f"{entry.target}{name[name.index('.py:') + 4 + len(entry.name) :]}" if entry.file else name


def _options(plugin: NamedPlugin, given: dict[str, Any], found: FoundPlugins) -> dict[str, Any]:
    """Return a plugin's options with the defaults that a recipe can express."""
    core = {key: given[key] for key in CORE_KEYS.get(plugin.section, ()) if key in given}
    own = {key: value for key, value in given.items() if key not in core}
    if plugin.section == "loss":
        core = {"weight": found.weights[plugin.name].value, **core}
    if other := core.get("calibrate"):
        losses = [*found.references, *(known for known in found.named if known.section == "loss")]
        core["calibrate"] = next(_full_name(other, known.entry) for known in losses if known.name == other)
    try:
        full = defaults(plugin.cls) | own
        build(plugin.cls, full)
    except RecipeError:  # a default is not valid for its own type
        full = own
    return core | full
