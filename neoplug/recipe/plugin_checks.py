"""The plugins of a recipe: importing, building from their options, and checks of their combination.

Reads the tree and not the validated recipe, so that mistakes elsewhere in the recipe hide none of these.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from neoplug.errors import Path as Key
from neoplug.errors import PluginError, Problem, RecipeError, did_you_mean
from neoplug.recipe.loss_weights import Weight, read_weight
from neoplug.recipe.paths import make_options_absolute
from neoplug.recipe.schema import Recipe
from neoplug.recipe.shorthands import named_twice, shorthands
from neoplug.recipe.source import may_be_inherited, reading_order, relative_place
from neoplug.recipe.tree import Tree
from neoplug.registry import CORE_KEYS, SPECS, Entry, Plugins, answered, class_problems, find, path_of
from neoplug.registry.class_source import source_mark
from neoplug.registry.discovery import SHIPPED
from neoplug.registry.options import build, options_model

_WHY = {
    "add_adapter": "a student has one adapter; other plugins may extend it",
    "make_optimizer": "one optimizer updates the weights",
    "rate": "one schedule sets the learning rate",
    "param_groups": "each weight has one learning rate",
    "save_adapter": "an adapter is saved in one form",
    "load_adapter": "an adapter is loaded from one form",
    "merge_adapter": "an adapter is merged in one way",
    "encode_teacher": "the teacher's output is stored in one kind",
}
_FIX = {
    "add_adapter": "keep one; to compare both, run the recipe once with each",
    "rate": "keep one; `train.lr_scheduler_type: null` removes that one",
}
_MISSING = {
    "add_adapter": Problem("no plugin adds an adapter", fix="name one under `adapter`", path=("adapter",)),
    "make_optimizer": Problem("no plugin makes an optimizer", fix="name one under `optimizer`", path=("optimizer",)),
    "rate": Problem("no plugin sets the learning rate", fix="name one under `schedule`", path=("schedule",)),
}


@dataclass
class NamedPlugin:
    """A plugin that a recipe names: in a section, or as the target of a loss's `calibrate`.

    path      the key that names it
    instance  None where its options have mistakes
    """

    section: str
    name: str
    path: Key
    entry: Entry
    cls: type
    instance: Any = None


@dataclass
class FoundPlugins:
    """The plugins of a recipe.

    named           the plugins that it names in its sections
    references      losses that only serve as calibration targets, built with their defaults
    weights         loss name -> weight
    entries         the key that names a plugin -> where it is imported from
    problems        all mistakes found
    only_installed  whether plugins that no installed package registers are left out: they are only in `entries`
    """

    only_installed: bool

    named: list[NamedPlugin] = field(default_factory=list)
    references: list[NamedPlugin] = field(default_factory=list)
    weights: dict[str, Weight] = field(default_factory=dict)
    entries: dict[Key, Entry] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def find_plugins(tree: Tree, *, only_installed: bool) -> FoundPlugins:
    """Import and build the plugins of the recipe; all mistakes are in the result's `problems`.

    only_installed  import only those that installed packages register: the others are only looked for
    """
    found = FoundPlugins(only_installed=only_installed)
    for section, name, options, path in _names(tree):
        try:
            entry = find(name, tree.nearest(path).folder)
            if section == "loss" and isinstance(options, dict):
                found.weights[name], problems = read_weight(options, path)
                found.problems += problems
            if plugin := _load(found, entry, section, name, path):
                found.named.append(plugin)
                if isinstance(options, dict):  # otherwise the typed recipe reports it
                    _build(found, plugin, options, tree)
        except RecipeError as error:
            found.problems += [p if p.path else replace(p, path=path) for p in error.problems]
    found.problems += [*_references(found, tree), *_sources(tree), *named_twice(tree), *_conflicts(found, tree)]
    found.problems += [*_unused_weights(found, tree), *_missing_teacher(found, tree)]
    return found


def _names(tree: Tree) -> Iterator[tuple[str, str, Any, Key]]:
    """Yield section, name, options and key of each plugin, also of those that are the default of a section."""
    for path, section in tree.plugin_maps.items():
        plugins = tree.get(path)
        if plugins is None and not tree.is_broken(path) and not tree.incomplete:
            plugins = Recipe.model_fields[section].default if section in Recipe.model_fields else {}
        if isinstance(plugins, dict):
            yield from ((section, name, options, (*path, name)) for name, options in plugins.items())
    yield from shorthands(tree)


def _load(found: FoundPlugins, entry: Entry, section: str, name: str, path: Key) -> NamedPlugin | None:
    """Import a plugin and check its class; None where `found` leaves it out. It is listed among the entries anyway."""
    found.entries[path] = entry
    if found.only_installed and not entry.is_installed:
        return None
    cls = entry.load()
    if problems := _class_problems(cls, section):
        raise RecipeError([_with_package(problem, cls, entry) for problem in problems])
    return NamedPlugin(section, name, path, entry, cls)


def _class_problems(cls: type, section: str) -> list[Problem]:
    """Return why a class is not a plugin of this section, or has options that no recipe can hold."""
    if problems := class_problems(cls, section):
        return problems
    try:
        options_model(cls)
    except RecipeError as error:
        return error.problems
    return []


def _with_package(problem: Problem, cls: type, entry: Entry) -> Problem:
    """Return a problem with the class of another package's plugin with the package, its version, and the line."""
    if not entry.version or entry.package == SHIPPED:  # of a file, the recipe says where it is
        return problem
    mark = source_mark(cls, problem.what)
    place = f", {mark.file}:{mark.line}" if mark and mark.file not in problem.what else ""
    return replace(problem, what=f"{problem.what} ({entry.package} {entry.version}{place})")


def _build(found: FoundPlugins, plugin: NamedPlugin, options: dict[str, Any], tree: Tree) -> None:
    """Set the plugin's instance. Raises RecipeError where its options are invalid."""
    found.problems += make_options_absolute(tree, plugin.path, plugin.cls)
    core = CORE_KEYS.get(plugin.section, ())
    own = {key: value for key, value in options.items() if key not in core}
    plugin.instance = build(plugin.cls, own, path=plugin.path, core=core)


def _references(found: FoundPlugins, tree: Tree) -> Iterator[Problem]:
    """Build the calibration targets that the recipe does not name as losses; yield the mistakes in `calibrate`."""
    for name, weight in found.weights.items():
        path, other = (*path_of("loss", name), "calibrate"), weight.calibrate
        if other == name:
            what, why = f"the loss `{name}` is calibrated to itself", "its weight would not change"
            yield Problem(what, why, "name another loss, or leave `calibrate` out", path)
        elif other in found.weights and (further := found.weights[other].calibrate):
            what = f"the loss `{name}` is calibrated to `{other}`, and that to `{further}`"
            why = "the other loss is measured at weight 1, which is not the weight that it would get"
            yield Problem(what, why, "name a loss that is not calibrated itself", path)
        elif other and other not in tree.get(("loss",)) and other not in [known.name for known in found.references]:
            try:
                found.references += _reference(other, path, tree.nearest(path).folder, found)
            except RecipeError as error:
                yield from (replace(problem, path=path) for problem in error.problems)


def _reference(name: str, path: Key, folder: Path, found: FoundPlugins) -> list[NamedPlugin]:
    """Return the calibration target; an empty list where `found` leaves it out."""
    if "@" in name.rpartition(":")[2]:
        find(name, folder)
        what = f"the recipe names no loss `{name}`{did_you_mean(name, list(found.weights))}"
        why = "a loss that it does not name has its defaults, and no tag"
        raise RecipeError([Problem(what, why, "name it under `loss`; `weight: 0` excludes it from training")])
    if (plugin := _load(found, find(name, folder), "loss", name, path)) is None:
        return []
    try:
        plugin.instance = build(plugin.cls, {})
    except RecipeError as error:
        fix = f"name `{name}` under `loss` with its options; `weight: 0` excludes it from training"
        raise RecipeError([replace(problem, fix=fix) for problem in error.problems]) from error
    return [plugin]


def _sources(tree: Tree) -> Iterator[Problem]:
    """Yield a problem for each source of rows that is a map of no plugin, or of several."""
    for path in tree.sources:
        plugins = tree.get(path)
        if not isinstance(plugins, dict) or len(plugins) == 1 or tree.is_broken(path):
            continue
        if not plugins:
            fix = "name a file, a folder, a dataset of the hub, or a plugin with its options"
            yield Problem(f"`{path[-1]}` names no source of rows", fix=fix, path=path)
            continue
        first, *others = sorted(plugins, key=lambda name: reading_order(tree.key_mark((*path, name)), tree))
        what = f"`{path[-1]}` names {others[0]} and {first}"
        yield Problem(what, "a source is one plugin", "keep one, or name each under `data.sources`", (*path, others[0]))


def _unused_weights(found: FoundPlugins, tree: Tree) -> Iterator[Problem]:
    """Yield a problem where the recipe has no loss, or none with a weight above 0."""
    losses = tree.get(("loss",))
    is_unknown = tree.is_broken(("loss",)) or may_be_inherited(tree, ("loss",))
    if is_unknown or not isinstance(losses, dict | None):
        return
    if not losses:
        yield Problem(
            "the recipe names no loss", fix="name at least one under `loss`", path=_cleared_path("loss", tree)
        )
    elif len(found.weights) == len(losses) and not any(weight.ever_counts for weight in found.weights.values()):
        yield Problem("all losses have weight 0", "nothing would be learnt", "give one a weight above 0", ("loss",))


def _missing_teacher(found: FoundPlugins, tree: Tree) -> Iterator[Problem]:
    """Yield a problem for each loss and token weight that reads the teacher's output, where there is no teacher."""
    teacher = ("teacher",)
    if tree.get(teacher) is not None or tree.is_broken(teacher) or may_be_inherited(tree, teacher):
        return
    for plugin in [*found.named, *found.references]:
        is_loss, hooks = plugin.section == "loss", answered(plugin.cls)
        reading = ("token_loss", "token_gradient", "token_weight") if is_loss else ("token_weight",)
        of_teacher = {"teacher", "teacher_entropy"}
        if any(of_teacher & set(hooks[hook].signature.parameters) for hook in reading if hook in hooks):
            kind = "loss" if is_loss else "token weight"
            what = f"the {kind} `{plugin.name}` needs a teacher, but the recipe has none"
            yield Problem(what, "", "add `teacher: {model: ...}`", teacher if teacher in tree.removed else plugin.path)


def _cleared_path(section: str, tree: Tree) -> Key:
    """Return the path of the last plugin that a null removed from an empty section, else of the section."""
    removed = [path for path in tree.removed if path[:-1] == (section,)]
    return removed[-1] if removed else (section,)


def _conflicts(found: FoundPlugins, tree: Tree) -> Iterator[Problem]:
    """Yield a problem for each second implementation of a hook that takes one, and for a required hook with none.

    Of two plugins that conflict in several hooks, the first hook is reported.
    """
    reported: set[tuple[Key, Key]] = set()
    is_complete = len(found.named) == sum(1 for _ in _names(tree)) and not tree.broken and not tree.incomplete
    for hook, spec in SPECS.items():
        rule = getattr(spec, "answers", "all")
        if rule not in ("exactly one", "at most one"):
            continue
        paths = [plugin.path for plugin in found.named if hook in answered(plugin.cls)]
        paths.sort(key=lambda path: (reading_order(tree.key_mark(path), tree), path))
        conflicts = [(path, paths[0]) for path in paths[1:] if (path, paths[0]) not in reported]
        reported.update(conflicts)
        yield from (_conflict(hook, later, first, tree) for later, first in conflicts)
        if not paths and rule == "exactly one" and is_complete:
            yield replace(_MISSING[hook], path=_cleared_path(str(_MISSING[hook].path[0]), tree))


def _conflict(hook: str, later: Key, first: Key, tree: Tree) -> Problem:
    first_mark = tree.key_mark(first)
    place = relative_place(first_mark, tree.key_mark(later))
    what = f"two plugins answer `{hook}`: {later[-1]} (here) and {first[-1]} ({place})"
    fix = _FIX.get(hook, "keep one") if first_mark else f"to leave the default out, write `{first[0]}: {{}}`"
    return Problem(what, _WHY.get(hook, ""), fix, later)


def check_problems(found: FoundPlugins, plugins: Plugins, references: Plugins, recipe: Recipe) -> list[Problem]:
    """Return the distinct problems that the `check` hooks of the plugins return or raise."""
    problems: dict[Problem, None] = {}
    for plugin in [*found.named, *found.references]:
        if "check" not in answered(plugin.cls):
            continue
        manager = references if plugin in found.references else plugins
        try:
            refused = manager.ask(plugin.section, plugin.name, "check", recipe=recipe.model_copy(deep=True))
        except RecipeError as error:
            refused = error.problems
        except PluginError as error:
            refused = [Problem(error.what, fix=f"fix it at {error.place}" if error.place else "fix the plugin")]
        for problem in refused:
            problems[problem if problem.path or problem.mark else replace(problem, path=plugin.path)] = None
    return list(problems)
