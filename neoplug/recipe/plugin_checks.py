"""The plugins of a recipe: found, imported, built from their options, and held against each other.

Works on the tree as it was read, so that mistakes elsewhere in the recipe hide none of these.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from neoplug.errors import Path as Key
from neoplug.errors import PluginError, Problem, RecipeError, did_you_mean
from neoplug.recipe.loss_options import read_weight
from neoplug.recipe.loss_weights import Weight
from neoplug.recipe.paths import make_options_absolute
from neoplug.recipe.schema import PLUGIN_MAPS, Recipe
from neoplug.recipe.source import may_be_inherited, reading_order, seen_from
from neoplug.recipe.tree import Tree
from neoplug.registry import CORE_KEYS, SPECS, Entry, Plugins, answered, class_problems, find, path_of
from neoplug.registry.options import build, path_fields

_WHY = {
    "add_adapter": "a student carries one adapter; what only adds to it may stand beside it",
    "make_optimizer": "one optimizer steps the weights",
    "param_groups": "each weight has one learning rate",
    "save_adapter": "an adapter is written in one form",
    "merge_adapter": "an adapter is merged in one way",
}
_FIX = {
    "add_adapter": "keep one; to compare both, run the recipe once with each",
}
_NOBODY = {
    "add_adapter": Problem("no plugin adds an adapter", fix="name one under `adapter`", path=("adapter",)),
    "make_optimizer": Problem("no plugin makes an optimizer", fix="name one under `optimizer`", path=("optimizer",)),
}


@dataclass
class Found:
    """What a recipe's plugin maps name."""

    entries: dict[tuple[str, str], Entry] = field(default_factory=dict)
    classes: dict[tuple[str, str], type] = field(default_factory=dict)
    instances: dict[str, dict[str, Any]] = field(default_factory=dict)
    weights: dict[str, Weight] = field(default_factory=dict)
    references: dict[str, Any] = field(default_factory=dict)  # losses to calibrate to that the recipe does not name
    problems: list[Problem] = field(default_factory=list)


def plugins_of(tree: Tree) -> Found:
    """Find and build all plugins that the recipe names; every mistake is among `problems`."""
    found = Found()
    for section, name, options in _named(tree):
        try:
            _add(found, tree, section, name, options)
        except RecipeError as error:
            path = path_of(section, name)
            found.problems += [p if p.path else replace(p, path=path) for p in error.problems]
    found.problems += _references(found, tree)
    found.problems += [*_conflicts(found, tree), *_unused_weights(found, tree), *_teacherless(found, tree)]
    return found


def _named(tree: Tree) -> Iterator[tuple[str, str, Any]]:
    for path, section in PLUGIN_MAPS.items():
        plugins = tree.get(path)
        if plugins is None and not tree.is_broken(path) and not tree.incomplete:
            plugins = Recipe.model_fields[section].default if section in Recipe.model_fields else {}
        if isinstance(plugins, dict):
            yield from ((section, name, options) for name, options in plugins.items())


def _add(found: Found, tree: Tree, section: str, name: str, options: Any) -> None:
    path = path_of(section, name)
    place = tree.places.get(path)
    entry = find(name, place.folder if place else Path.cwd())
    found.entries[section, name] = entry
    cls = entry.load()
    if problems := class_problems(cls, section):
        raise RecipeError(problems)
    found.classes[section, name] = cls
    if not isinstance(options, dict):
        return  # its type is a mistake that the typed recipe reports
    found.problems += make_options_absolute(tree, path, _path_options(cls))
    core = CORE_KEYS.get(section, ())
    if section == "loss":
        found.weights[name], wrong = read_weight(options, path)
        found.problems += wrong
        options = {key: value for key, value in options.items() if key not in core}
    instance = build(cls, options, path=path, core=core)
    found.instances.setdefault(section, {})[name] = instance


def _path_options(cls: type) -> set[str]:
    try:
        return path_fields(cls)
    except Exception:  # types that cannot be read: building it says so
        return set()


def _references(found: Found, tree: Tree) -> Iterator[Problem]:
    """Build with their defaults the losses that others are calibrated to and that the recipe does not name."""
    for name, weight in found.weights.items():
        path, other = (*path_of("loss", name), "calibrate"), weight.calibrate
        if other == name:
            what, why = f"the loss `{name}` is calibrated to itself", "its weight would stay as it is"
            yield Problem(what, why, "name another loss, or leave `calibrate` out", path)
        elif other in found.weights and (further := found.weights[other].calibrate):
            what = f"the loss `{name}` is calibrated to `{other}`, and that to `{further}`"
            why = "it would start as strong as the other at weight 1, which is not the weight that the other gets"
            yield Problem(what, why, "name a loss that is not calibrated itself", path)
        elif other is not None and other not in tree.get(("loss",)):
            try:
                _add_reference(found, other, tree.places[path].folder)
            except RecipeError as error:
                yield from (replace(problem, path=path) for problem in error.problems)


def _add_reference(found: Found, name: str, folder: Path) -> None:
    entry = find(name, folder)
    if "@" in name.rpartition(":")[2]:
        what = f"the recipe names no loss `{name}`{did_you_mean(name, list(found.weights))}"
        why = "what it does not name has its defaults, and nothing to be told apart by a tag"
        raise RecipeError([Problem(what, why, "name it under `loss`; `weight: 0` keeps it from training")])
    cls = entry.load()
    if problems := class_problems(cls, "loss"):
        raise RecipeError(problems)
    try:
        found.references[name] = build(cls, {})
    except RecipeError as error:
        fix = f"name `{name}` under `loss` with its options; `weight: 0` keeps it from training"
        raise RecipeError([replace(problem, fix=fix) for problem in error.problems]) from error
    found.entries["calibrate", name] = entry


def _unused_weights(found: Found, tree: Tree) -> Iterator[Problem]:
    losses = tree.get(("loss",))
    if tree.is_broken(("loss",)) or (losses is not None and not isinstance(losses, dict)):
        return
    if may_be_inherited(tree, ("loss",)):
        return
    if not losses:
        yield Problem("the recipe names no loss", fix="name at least one under `loss`", path=_emptied("loss", tree))
    elif len(found.weights) == len(losses) and not any(weight.ever_counts for weight in found.weights.values()):
        yield Problem("all losses have weight 0", "nothing would be learnt", "give one a weight above 0", ("loss",))


def _teacherless(found: Found, tree: Tree) -> Iterator[Problem]:
    teacher = ("teacher",)
    if tree.get(teacher) is not None or tree.is_broken(teacher) or may_be_inherited(tree, teacher):
        return
    for path, whose, cls in _scoring(found):
        hooks = answered(cls)
        asks = ("token_loss", "token_gradient", "token_weight") if whose.startswith("loss") else ("token_weight",)
        if any("teacher" in hooks[hook].signature.parameters for hook in asks if hook in hooks):
            what, fix = f"the {whose} needs a teacher, but the recipe has none", "add `teacher: {model: ...}`"
            yield Problem(what, fix=fix, path=teacher if teacher in tree.removed else path)


def _scoring(found: Found) -> Iterator[tuple[Key, str, type]]:
    """Yield where each plugin stands that may be asked to score tokens, what to call it, and its class."""
    for (section, name), cls in found.classes.items():
        yield path_of(section, name), f"{'loss' if section == 'loss' else 'token weight'} `{name}`", cls
    for name, path in reference_paths(found).items():
        yield path, f"loss `{name}`", type(found.references[name])


def reference_paths(found: Found) -> dict[str, Key]:
    """Return where the recipe asks for each reference: at the first loss that is calibrated to it."""
    paths: dict[str, Key] = {}
    for name, weight in found.weights.items():
        if weight.calibrate in found.references:
            paths.setdefault(weight.calibrate, (*path_of("loss", name), "calibrate"))
    return paths


def _emptied(section: str, tree: Tree) -> Key:
    """Return what a null took from a map of plugins that now lacks something; else the map."""
    taken = [path for path in tree.removed if path[:-1] == (section,)]
    return taken[-1] if taken else (section,)


def _conflicts(found: Found, tree: Tree) -> Iterator[Problem]:
    """Hold the hooks that take one answer against who gives one; the later in the recipe is at fault."""
    known = len(found.classes) == sum(1 for _ in _named(tree)) and not tree.broken and not tree.incomplete
    for hook, spec in SPECS.items():
        rule = getattr(spec, "answers", "all")
        if rule not in ("exactly one", "at most one"):
            continue
        givers = sorted(
            (path_of(section, name) for (section, name), cls in found.classes.items() if hook in answered(cls)),
            key=lambda path: (_order(tree, path), path),
        )
        for later in givers[1:]:
            yield _conflict(hook, later, givers[0], tree)
        if not givers and rule == "exactly one" and known:
            yield replace(_NOBODY[hook], path=_emptied(str(_NOBODY[hook].path[0]), tree))


def _conflict(hook: str, later: Key, first: Key, tree: Tree) -> Problem:
    here = tree.places[later].key if later in tree.places else None
    there = tree.places[first].key if first in tree.places else None
    what = f"two plugins answer `{hook}`: {later[-1]} (here) and {first[-1]} ({seen_from(there, here)})"
    fix = f"to leave the default out, write `{first[0]}: {{}}`" if there is None else _FIX.get(hook, "keep one")
    return Problem(what, _WHY.get(hook, ""), fix, later)


def _order(tree: Tree, path: Key) -> tuple[int, int, int]:
    place = tree.places.get(path)
    return reading_order(place.key if place else None, tree)


def asked(plugins: Plugins, recipe: Recipe, places: Mapping[str, Key] | None = None) -> Iterator[Problem]:
    """Ask every plugin's `check` what it cannot stand on.

    places  plugin name -> where it is asked for, of plugins without a section of their own
    """
    seen = set()
    for section, name in plugins.named("check"):
        path = (places or {}).get(name) or path_of(section, name)
        try:
            answer = list(plugins.ask(section, name, "check", recipe=recipe.model_copy(deep=True)) or ())
            if not all(isinstance(problem, Problem) for problem in answer):
                raise TypeError("it must return a list of neoplug.Problem")
        except RecipeError as error:
            answer = error.problems
        except PluginError as error:
            answer = [Problem(error.what, fix=f"mend it at {error.place}" if error.place else "mend the plugin")]
        except TypeError as error:
            answer = [Problem(f"the plugin `{name}` failed in `check`: {error}")]
        for problem in answer:
            problem = problem if problem.path or problem.mark else replace(problem, path=path)
            if problem not in seen:
                seen.add(problem)
                yield problem
