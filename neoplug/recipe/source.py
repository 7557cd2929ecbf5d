"""Where a recipe's text comes from: a file or a shipped name, what it extends, and overrides, laid into one tree."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from neoplug.errors import Mark, Problem, RecipeError, UsageError, did_you_mean
from neoplug.errors import Path as Key
from neoplug.recipe.python_values import to_yaml
from neoplug.recipe.schema import PLUGIN_MAPS
from neoplug.recipe.tree import BROKEN, Node, Tree, lay
from neoplug.recipe.yaml_reader import Source, read
from neoplug.registry.options import UnknownKey

OVERRIDE = "override"  # the file that marks of overrides name
_ASSIGNMENT = re.compile(r"""((?:"[^"]*"|'[^']*'|[^="'])*)=(.*)""", re.DOTALL)
_QUOTED = re.compile(r""""([^"]*)"|'([^']*)'""")
_FILE_PLUGIN = re.compile(r"((\.{0,2}/|~).+?|[^.]+)\.py:[A-Za-z_]\w*(@[\w-]+)?(?=\.|$)")


def shipped() -> dict[str, Path]:
    """Return the recipes that neoplug ships, by name."""
    folder = Path(str(files("neoplug_recipes")))
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def locate(source: str | Path, folder: Path) -> tuple[Path, str]:
    """Return the file that `source` means, and its name in messages: a file (from `folder`), else a shipped name.

    Raises UsageError where there is neither.
    """
    text = str(source)
    try:
        path = folder / Path(text).expanduser()
        if path.is_file():
            return path, text
    except (OSError, RuntimeError, ValueError):
        pass
    known = shipped()
    if text in known:
        return known[text], known[text].name
    what = f"there is no recipe `{text}`: no such file in {folder}, and none is shipped{did_you_mean(text, [*known])}"
    raise UsageError(f"{what}\nfix: name a YAML file, or one of {', '.join(known)}")


def gather(path: Path, name: str, overrides: Sequence[str], changes: Tree) -> Tree:
    """Read the recipe in `path`, what it extends, `changes` and `overrides`, in that order, into one tree.

    Raises RecipeError where the text of `path` is no YAML.
    """
    child = read_file(path, name)
    parent = _parent_of(child, path, name)
    tree = Tree(replace(child.root, value={}), incomplete=parent.incomplete)
    for upper in (parent, child, changes):
        tree.problems += upper.problems
        tree = replace(tree, root=lay(tree.root, upper.root, tree.removed))
    for number, override in enumerate(overrides, 1):
        tree = _overridden(tree, override, number)
    for plugins in filter(None, map(tree.get, PLUGIN_MAPS)):
        if isinstance(plugins, dict):  # `name:` is `name: {}`, a plugin without options
            plugins |= {name: {} for name, options in plugins.items() if options is None}
    return tree


def from_values(values: Mapping[str, Any], file: str = OVERRIDE, word: str = "") -> Tree:
    """Make a tree of plain Python values; relative paths start at the current folder.

    word  the word of a command line that they come from, if they do: it is their place in messages
    Raises RecipeError where they cannot be read as a recipe's map of sections.
    """
    return _read_map(Source(to_yaml(values), file, Path.cwd(), word=word))


def read_file(path: Path, name: str) -> Tree:
    """Read one file. Raises RecipeError where it cannot be read or is no map."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError([Problem(f"{name} is not UTF-8 text: {error.reason} at byte {error.start}")]) from error
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}") from error
    return _read_map(Source(text, name, path.resolve().parent))


def _read_map(source: Source) -> Tree:
    tree = read(source)
    if tree.root.value is BROKEN:
        raise RecipeError(tree.problems)
    if not isinstance(tree.root.value, dict):
        what = "the recipe is empty" if tree.root.value is None else "a recipe is a map of sections"
        raise RecipeError([Problem(what, fix="begin with `student: {model: ...}`", mark=tree.root.mark)])
    return tree


def _parent_of(child: Tree, path: Path, name: str) -> Tree:
    """Return the recipe that `child` extends, else an empty one, and take `extends` out of `child`.

    A parent that cannot be read is a problem and leaves the whole incomplete: the child's own mistakes are still found.
    """
    nothing = Tree(replace(child.root, value={}))
    extends = child.root.value.pop("extends", None)
    if extends is None or extends.value is None:
        return nothing
    try:
        if extends.value is not BROKEN:
            return _read_parent(extends, path, name)
    except RecipeError as error:
        nothing.problems += [p if p.mark else replace(p, mark=extends.mark) for p in error.problems]
    return replace(nothing, incomplete=True)


def _read_parent(extends: Node, path: Path, name: str) -> Tree:
    named = extends.value
    if not isinstance(named, str) or not named:
        raise RecipeError([Problem("`extends` names one recipe: a shipped name or a file")])
    try:
        file, shown = locate(named, path.resolve().parent)
        parent = read_file(file, str(Path(name).parent / shown))
    except RecipeError:
        raise
    except UsageError as error:
        what, _, fix = str(error).partition("\nfix: ")
        raise RecipeError([Problem(what, fix=fix)]) from error
    if "extends" in parent.root.value:
        what, why = f"`{named}` extends another recipe itself", "one level reads best: each value has one of two places"
        raise RecipeError([Problem(what, why, "copy what you need from it")])
    return parent


def may_be_inherited(tree: Tree, path: Key) -> bool:
    """Return whether what `path` lacks may be in the recipe that is extended, which could not be read."""
    is_removed = any(path[:length] in tree.removed for length in range(1, len(path) + 1))
    if not tree.incomplete or is_removed or (path in tree.places and path not in PLUGIN_MAPS):
        return False
    plugin_map = next((known for known in PLUGIN_MAPS if path[: len(known)] == known), path)
    node = tree.places.get(plugin_map)  # a file's map of plugins is whole; one made by overrides may be a part
    return node is None or node.key.file == OVERRIDE


def _overridden(tree: Tree, override: str, number: int) -> Tree:
    """Return `tree` with `key.path=value` laid over it: the value replaces what is there; null removes it."""
    line = Source(override, OVERRIDE, Path.cwd(), line=number)
    match = _ASSIGNMENT.fullmatch(override) if override.isprintable() else None
    try:
        if not match or not match[1].strip():
            raise ValueError("an override is written key.path=value")
        path = split(match[1], tree.values)
        if path[0] == "extends":
            raise ValueError("`extends` cannot be overridden: write a file that extends the other recipe")
        if not match[2].strip():
            raise ValueError(f"`{joined(path)}=` has no value; null removes the key")
    except ValueError as error:
        tree.problems.append(Problem(str(error), mark=line.mark(length=len(override))))
        return tree
    start = len(match[1]) + 1
    given = read(Source(match[2], OVERRIDE, line.folder, override[:start], number))
    key, value = line.mark(length=start - 1), line.mark(0, start, len(override))
    node = Node(given.root.value, key, value, line.folder)
    tree.problems += given.problems
    is_there = path in tree.places or path[:-1] not in PLUGIN_MAPS or may_be_inherited(tree, path[:-1])
    if node.value is None and not is_there:
        what = f"there is no `{path[-1]}` to remove{did_you_mean(str(path[-1]), list(tree.get(path[:-1]) or ()))}"
        tree.problems.append(Problem(what, mark=key))
    for name in reversed(path):
        node = replace(node, value={name: node})
    return replace(tree, root=lay(tree.root, node, tree.removed, override=path))


def joined(path: Sequence[str | int]) -> str:
    """Write a path as an override does: parts with a dot or other unusual letters are quoted."""
    return ".".join(str(key) if re.fullmatch(r"[\w@-]+", str(key)) else f'"{key}"' for key in path)


def split(text: str, values: Any) -> Key:
    """Split `key.path` at its dots, given the values it is a path in.

    A part in quotes is taken as it is; else the longest existing key; else a plugin of the form
    `./file.py:Class`; else all up to the next dot. So dots in known names need no quotes, in new ones they do.
    Raises ValueError where a part is empty.
    """
    path: list[str] = []
    rest = text.strip()
    while True:
        part, rest = _first(rest, values)
        path.append(part)
        values = values.get(part) if isinstance(values, dict) else None
        if not rest:
            return tuple(path)
        rest = rest[1:]


def _first(text: str, values: Any) -> tuple[str, str]:
    """Return the first part of a path, and what follows it: nothing, or a dot and more."""
    if quoted := _QUOTED.match(text):
        part, rest = quoted[1] or quoted[2] or "", text[quoted.end() :]
    else:
        known = [key for key in values if text == key or text.startswith(f"{key}.")] if isinstance(values, dict) else []
        file = _FILE_PLUGIN.match(text)
        part = max(known, key=len) if any(known) else file[0] if file else text.partition(".")[0]
        rest = text[len(part) :]
    if not part or (rest and not rest.startswith(".")):
        raise ValueError(f"`{text}` is no key: an override is written key.path=value")
    return part, rest


def placed(tree: Tree, problem: Problem) -> Problem:
    """Return `problem` with the mark of its path, unless it has one: of the value that is wrong, else of the key.

    Where nothing was written at the path, the nearest place above it is marked.
    """
    about_key = isinstance(problem, UnknownKey) or problem.path[:-1] in PLUGIN_MAPS
    value = not about_key and not isinstance(tree.get(problem.path), dict)
    return problem if problem.mark else replace(problem, mark=tree.mark(problem.path, value=value))


def reading_order(mark: Mark | None, tree: Tree) -> tuple[int, int, int]:
    """Sort places as a reader meets them: defaults, what is extended, the file, overrides; then line and column."""
    if mark is None:
        return (0, 0, 0)
    layer = 2 if mark.file == tree.places[()].key.file else 3 if mark.file == OVERRIDE else 1
    return (layer, mark.line, mark.column)


def origin(mark: Mark) -> str:
    """Say in short where a value was written."""
    return OVERRIDE if mark.file == OVERRIDE else f"{Path(mark.file).name}:{mark.line}"


def relative_place(mark: Mark | None, other: Mark | None) -> str:
    """Return where `mark` is, in short where it is in the same file as `other`."""
    if mark is None:
        return "the default"
    return f"line {mark.line}" if other and mark.file == other.file else f"{mark.file}:{mark.line}"
