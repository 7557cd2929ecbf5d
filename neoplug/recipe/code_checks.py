"""The code that a recipe names, wherever it can name some: none of it is imported without the user's consent."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError
from neoplug.recipe.paths import data_sources, texts_below
from neoplug.recipe.plugin_checks import FoundPlugins
from neoplug.recipe.schema import is_plugin_map
from neoplug.recipe.source import OVERRIDE
from neoplug.recipe.tree import Tree
from neoplug.registry.consent import MODULE, SCRIPTS, Code, Consent, Naming
from neoplug.registry.modules import LITERAL
from neoplug.registry.options import code_fields

Finder = Callable[[], Code | None]  # finds the code without importing it; may raise RecipeError


def code_problems(tree: Tree, consent: Consent, found: FoundPlugins) -> list[Problem]:
    """Return a problem for each piece of code that the recipe names and the user's consent does not cover."""
    problems = []
    for path, find, naming in [*_plugins(tree, found), *_sources(tree), *_models(tree), *_options(tree, found)]:
        try:
            consent.require(find(), naming)
        except RecipeError as error:
            problems += [replace(problem, path=path) for problem in error.problems]
    return problems


def _plugins(tree: Tree, found: FoundPlugins) -> Iterator[tuple[Key, Finder, Naming]]:
    for path, entry in found.entries.items():
        if not entry.is_installed:
            name = path[-1] if is_plugin_map(path[:-1]) else tree.get(path)  # else it is at `calibrate`
            yield path, partial(Code.of_plugin, entry), _naming(tree, path, str(name))


def _sources(tree: Tree) -> Iterator[tuple[Key, Finder, Naming]]:
    for path, source in data_sources(tree).items():
        module = source.removeprefix(MODULE)
        if module != source and module not in LITERAL:
            yield path, partial(Code.of_module, module), _naming(tree, path, source)


def _models(tree: Tree) -> Iterator[tuple[Key, Finder, Naming]]:
    for role in ("student", "teacher"):
        path, model = (role, "trust_remote_code"), tree.get((role, "model"))
        if tree.get(path) is True and isinstance(model, str):
            naming = _naming(tree, (role, "model"), str(tree.nearest((role, "model")).value))
            yield path, partial(Code.of_model, model), replace(naming, is_typed=_is_typed(tree, path))


def _options(tree: Tree, found: FoundPlugins) -> Iterator[tuple[Key, Finder, Naming]]:
    """Yield the options of plugins that name folders of code (`CodePath`)."""
    for plugin in found.named:
        for name in code_fields(plugin.cls):
            for path in texts_below(tree.get((*plugin.path, name)), (*plugin.path, name)):
                folder = Path(tree.get(path))
                yield path, partial(Code.of_folder, folder, SCRIPTS), _naming(tree, path, str(tree.nearest(path).value))


def _naming(tree: Tree, path: Key, text: str) -> Naming:
    return Naming(text, tree.nearest(path).folder, _is_typed(tree, path))


def _is_typed(tree: Tree, path: Key) -> bool:
    return tree.nearest(path).key.file == OVERRIDE
