"""Reading of a recipe from its sources: a file or a shipped recipe, the one it extends, overrides; merged to a tree."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

from neoplug.errors import Mark, Problem, RecipeError, did_you_mean
from neoplug.errors import Path as Key
from neoplug.errors.text import has_credential
from neoplug.files import read_regular
from neoplug.recipe.limits import MAX_CHARACTERS, MAX_DEPTH, Size
from neoplug.recipe.python_values import to_yaml
from neoplug.recipe.schema import PLUGIN_MAPS, Recipe, is_plugin_map, plugin_map_at
from neoplug.recipe.tree import BROKEN, Node, Tree, is_option, merge
from neoplug.recipe.yaml_reader import CREDENTIAL, YamlText, read
from neoplug.registry.modules import module_files
from neoplug.registry.options import UnknownKey

OVERRIDE = "override"  # the file that marks of overrides name
MOST_DOTS = 100  # of a key without quotes
_ASSIGNMENT = re.compile(r"""((?:"[^"]*"|'[^']*'|[^="'])*)=(.*)""", re.DOTALL)
_DOT = re.compile(r"\.|\Z")
_QUOTED = re.compile(r""""([^"]*)"|'([^']*)'""")
_TOP_KEY = re.compile(r"""^["']?([A-Za-z_][\w-]*)["']?:(?=\s|$)""", re.MULTILINE)
_FILE_PLUGIN = re.compile(r"((\.{0,2}/|~).+?|[^.]+)\.py:[A-Za-z_]\w*(@[\w-]+)?(?=\.|$)")


def shipped() -> dict[str, Path]:
    """Return the recipes that are installed, by name: `base`, `published/PAPER/RUN`, and `PACKAGE/NAME` of others.

    A package names a folder of recipes, as a module, by an entry point of the group `neoplug.recipes`. The module is
    not imported.
    """
    folder = Path(str(files("neoplug_recipes")))
    found = [*folder.glob("*.yaml"), *folder.glob("published/*/*.yaml")]
    own = {file.relative_to(folder).with_suffix("").as_posix(): file for file in sorted(found)}
    return _of_packages() | own


def _of_packages() -> dict[str, Path]:
    """Return the recipes of installed packages, by name."""
    found: dict[str, Path] = {}
    for entry in entry_points(group="neoplug.recipes"):
        for module in module_files(entry.value)[-1:]:  # none where there is no such module
            package = entry.dist.name if entry.dist else entry.name
            found |= {f"{package}/{file.stem}": file for file in module.parent.glob("*.yaml")}
    return dict(sorted(found.items()))


def locate(
    source: str | Path, folder: Path, known: Mapping[str, Path] | None = None, kind: str = "recipe"
) -> tuple[Path, str]:
    """Return the recipe file that `source` names, and its name in messages.

    source  a file, where relative from `folder`; else the name of a shipped recipe
    known   the files that are shipped, by name; None: the recipes
    kind    what is looked for, in messages
    Raises RecipeError where there is neither.
    """
    text = str(source)
    try:
        path = folder / Path(text).expanduser()
        if path.exists() and not path.is_dir():
            return path, text
    except (OSError, RuntimeError, ValueError):
        pass
    known = shipped() if known is None else known
    if text in known:
        return known[text], known[text].name
    what = f"there is no {kind} `{text}`: no such file in {folder}, and none is shipped{did_you_mean(text, [*known])}"
    names = ", ".join(name for name in known if "/" not in name)
    raise RecipeError([Problem(what, fix=f"name a YAML file, or one of {names}")])


def read_recipe(path: Path, name: str, overrides: Sequence[str], changes: Tree) -> Tree:
    """Return one tree of the recipe in `path`, merged over the one that it extends; `changes`, then `overrides` on top.

    Raises RecipeError where `path` or `changes` is not a YAML map; other mistakes are the tree's `problems`.
    """
    size = Size()
    child = _as_map(read(read_file(path, name), size))
    parent = _parent_of(child, path, name, size)
    tree = Tree(replace(child.root, value={}), incomplete=parent.incomplete)
    for upper in (parent, child, changes):
        tree.problems += upper.problems
        tree = replace(tree, root=merge(tree.root, upper.root, tree.removed))
    for number, override in enumerate(overrides, 1):
        tree = _overridden(tree, override, number, size)
    return tree


def from_values(values: Mapping[str, Any], file: str = OVERRIDE, word: str = "", folder: Path | None = None) -> Tree:
    """Return the tree of plain Python values.

    word    the command line argument that they come from, if any: messages quote it as the place of the values
    folder  where relative paths in it start; None: the current one
    Raises RecipeError where they are not a map, or have a part that no recipe can express and that ends the reading.
    """
    return _as_map(read(YamlText(to_yaml(values), file, folder or Path.cwd(), word=word)))


def read_file(path: Path, name: str) -> YamlText:
    """Return the text of a file; bytes that are not UTF-8 are lone surrogates, which `read` reports.

    Raises RecipeError where it is unreadable.
    """
    try:
        content = read_regular(path, 4 * MAX_CHARACTERS + 1)  # of a longer one, enough for `read` to refuse it
    except OSError as error:
        raise RecipeError([Problem(f"{name} cannot be read: {error.strerror}")]) from error
    shown = f"./{name}" if name == OVERRIDE else name  # what an override names is the user's own word
    return YamlText(content.decode("utf-8-sig", errors="surrogateescape"), shown, path.resolve().parent)


def _as_map(tree: Tree) -> Tree:
    """Return the tree of a recipe. Raises RecipeError where reading it ended early, or it is no map."""
    if tree.root.value is BROKEN:
        raise RecipeError(tree.problems)
    if not isinstance(tree.root.value, dict):
        what = "the recipe is empty" if tree.root.value is None else "a recipe is a map of sections"
        raise RecipeError([Problem(what, fix="begin with `student: {model: ...}`", mark=tree.root.mark)])
    return tree


def _parent_of(child: Tree, path: Path, name: str, size: Size) -> Tree:
    """Return the recipe that `child` extends, else an empty one; remove `extends` from `child`.

    Where the parent cannot be read, the empty one has the problem and is `incomplete`: the child is still checked.
    """
    nothing = Tree(replace(child.root, value={}))
    extends = child.root.value.pop("extends", None)
    if extends is None or extends.value is None:
        return nothing
    try:
        if extends.value is not BROKEN:
            return _read_parent(extends, path, name, size)
    except RecipeError as error:
        nothing.problems += [p if p.mark else replace(p, mark=extends.mark) for p in error.problems]
    return replace(nothing, incomplete=True)


def _read_parent(extends: Node, path: Path, name: str, size: Size) -> Tree:
    """Return the recipe that the value of `extends` names, without its reference. Raises RecipeError."""
    named = extends.value
    if not isinstance(named, str) or not named:
        raise RecipeError([Problem("`extends` names one recipe: a shipped name or a file")])
    file, shown = locate(named, path.resolve().parent)
    text = read_file(file, str(Path(name).parent / shown))
    tree = read(text, size)
    if not is_recipe(tree, text):
        raise RecipeError(
            [Problem(f"`{named}` is no recipe", "few of its keys are those of a recipe, so it is not quoted")]
        )
    parent = _as_map(tree)
    if "extends" in parent.root.value:
        what, why = f"`{named}` extends another recipe itself", "one level reads best: each value has one of two places"
        raise RecipeError([Problem(what, why, "copy what you need from it")])
    parent.root.value.pop("reference", None)  # a claim about the parent alone
    return parent


def is_recipe(tree: Tree, text: YamlText) -> bool:
    """Return whether at least half of the keys at the top of a file, readable or not, are those of a recipe.

    Of a file that is none no line is shown in messages: another's recipe may name any file that the user can read.
    """
    keys = tree.root.value if isinstance(tree.root.value, dict) else _TOP_KEY.findall(text.text)
    known = [key for key in keys if key in Recipe.model_fields or key == "extends"]
    return 0 < len(known) >= len(keys) / 2


def may_be_inherited(tree: Tree, path: Key) -> bool:
    """Return whether a value that is missing at `path` may be in the extended recipe, which could not be read."""
    is_removed = any(path[:length] in tree.removed for length in range(1, len(path) + 1))
    if not tree.incomplete or is_removed or (tree.node(path) and path not in PLUGIN_MAPS):
        return False
    node = tree.node(plugin_map_at(path) or path)  # a file's map replaces the parent's; overrides add to it
    return node is None or node.key.file == OVERRIDE


def _overridden(tree: Tree, override: str, number: int, size: Size) -> Tree:
    """Return `tree` with the override `key.path=value` applied: the value replaces the one there, null removes it."""
    line = YamlText(override, OVERRIDE, Path.cwd(), line=number)
    match = _ASSIGNMENT.fullmatch(override) if override.isprintable() else None
    try:
        if not match or not match[1].strip():
            raise ValueError("an override is written key.path=value")
        if has_credential(match[1]):
            raise ValueError(CREDENTIAL.what)
        path = split(match[1], tree.root.value)
        if path[0] == "extends":
            raise ValueError("`extends` cannot be overridden: write a file that extends the other recipe")
        if not match[2].strip():
            raise ValueError(f"`{joined(path)}=` has no value; null removes the key")
    except ValueError as error:
        tree.problems.append(Problem(str(error), mark=line.mark(length=len(override))))
        return tree
    start = len(match[1]) + 1
    given = read(YamlText(match[2], OVERRIDE, line.folder, override[:start], number), size, len(path))
    key, value = line.mark(length=start - 1), line.mark(0, start, len(override))
    node = Node(given.root.value, key, value, line.folder)
    tree.problems += given.problems
    is_there = tree.node(path) or not is_plugin_map(path[:-1]) or may_be_inherited(tree, path[:-1])
    if node.value is None and not is_there:
        what = f"there is no `{path[-1]}` to remove{did_you_mean(str(path[-1]), list(tree.get(path[:-1]) or ()))}"
        tree.problems.append(Problem(what, mark=key))
    for name in reversed(path):
        node = replace(node, value={name: node})
    return replace(tree, root=merge(tree.root, node, tree.removed, override=path))


def joined(path: Sequence[str | int]) -> str:
    """Write a path as in an override: keys are joined by dots, and quoted where they have unusual characters."""
    return ".".join(str(key) if re.fullmatch(r"[\w@-]+", str(key)) else f'"{key}"' for key in path)


def split(text: str, values: Any) -> Key:
    """Return the keys of a dotted path into `values`.

    Each key is, in this order of precedence: a part in quotes; the longest existing key; a plugin of the form
    `./file.py:Class`; all up to the next dot. So a dot needs quotes in new keys only.
    values  a map of maps, plain values or nodes
    Raises ValueError where a key is empty, or there are too many.
    """
    path: list[str] = []
    rest = text.strip()
    while True:
        part, rest = _first(rest, values)
        path.append(part)
        values = values.get(part) if isinstance(values, dict) else None
        values = values.value if isinstance(values, Node) else values
        if not rest:
            return tuple(path)
        if len(path) == MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} levels deep")
        rest = rest[1:]


def _first(text: str, values: Any) -> tuple[str, str]:
    """Return the first key of a dotted path, and the rest: empty, or a dot and further keys."""
    if quoted := _QUOTED.match(text):
        part, rest = quoted[1] or quoted[2] or "", text[quoted.end() :]
    else:
        ends = (dot.start() for dot in islice(_DOT.finditer(text), MOST_DOTS))
        known = [text[:end] for end in ends if text[:end] in values] if isinstance(values, dict) else []
        file = _FILE_PLUGIN.match(text)
        part = known[-1] if any(known) else file[0] if file else text.partition(".")[0]
        rest = text[len(part) :]
    if not part or (rest and not rest.startswith(".")):
        raise ValueError(f"`{text}` is no key: an override is written key.path=value")
    return part, rest


def marked(tree: Tree, problem: Problem) -> Problem:
    """Return `problem` with a mark: its own, else that of the wrong value, or of the key where the key is wrong.

    Where the path is not in the text, the nearest ancestor is marked.
    """
    about_key = isinstance(problem, UnknownKey) or is_plugin_map(problem.path[:-1])
    path = problem.path if about_key else _item(tree, problem)
    value = not about_key and not isinstance(tree.get(problem.path), dict)
    return problem if problem.mark else replace(problem, mark=tree.mark(path, value=value))


def _item(tree: Tree, problem: Problem) -> Key:
    """Return the path of the item of an option, a list or map, that a problem names first; else the problem's."""
    held = tree.get(problem.path) if is_option(problem.path) else None
    items = {str(key): key for key in held} if isinstance(held, dict) else {}
    if isinstance(held, list):
        items = {str(item): at for at, item in enumerate(held)}
    named = (quoted or number for quoted, number in re.findall(r"`([^`]+)`|\b(\d+)\b", problem.what))
    return next(((*problem.path, items[name]) for name in named if name in items), problem.path)


def reading_order(mark: Mark | None, tree: Tree) -> tuple[int, int, int]:
    """Return a sort key of marks: defaults, the extended recipe, the file, overrides; in each by line and column."""
    if mark is None:
        return (0, 0, 0)
    layer = 2 if mark.file == tree.root.key.file else 3 if mark.file == OVERRIDE else 1
    return (layer, mark.line, mark.column)


def origin(mark: Mark | None) -> str:
    """Return the origin of a value with this mark: "mine.yaml:3", "override", or "default" without one."""
    if mark is None:
        return "default"
    return OVERRIDE if mark.file == OVERRIDE else f"{Path(mark.file).name}:{mark.line}"


def relative_place(mark: Mark | None, other: Mark | None) -> str:
    """Return the place of `mark`: only its line where it is in the same file as `other`."""
    if mark is None:
        return "the default"
    return f"line {mark.line}" if other and mark.file == other.file else f"{mark.file}:{mark.line}"
