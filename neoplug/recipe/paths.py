"""Local paths in a recipe: relative to the file that names them, in an override to the current folder."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from neoplug.errors import Path as Key
from neoplug.errors import Problem, did_you_mean
from neoplug.recipe.tree import Tree

PATHS: tuple[Key, ...] = (
    ("teacher", "model"),
    ("teacher", "chat_template"),
    ("student", "model"),
    ("teacher", "adapter_path"),
    ("student", "adapter_path"),
    ("data", "source"),
    ("data", "eval_source"),
    ("data", "chat_template"),
)
_SUFFIXES = (".json", ".jsonl", ".parquet", ".csv", ".txt", ".md", ".gguf", ".safetensors", ".jinja")
_NO_PATH = re.compile(r"(pypi|python):|own$|.*\{", re.DOTALL)  # a chat template may be Jinja text itself


def make_absolute(tree: Tree) -> list[Problem]:
    """Write local paths out in full, in place; return a problem for each that looks like one but is not there."""
    problems = []
    sources = tree.get(("data", "sources"))
    names = sources if isinstance(sources, dict) else {}
    for path in (*PATHS, *(("data", "sources", name, "source") for name in names)):
        text = tree.get(path)
        if isinstance(text, str) and text and not _NO_PATH.match(text):
            section = tree.get(path[:-1])
            folders = list(dict.fromkeys([tree.places[path].folder, Path.cwd()]))
            found = _find(text, folders)
            if found:
                section[path[-1]] = str(found)
            elif looks_local(text):
                problems.append(_missing(text, folders, path))
    return problems


def make_options_absolute(tree: Tree, path: Key, names: Iterable[str]) -> list[Problem]:
    """The same for those of a plugin's options, at `path`, that name files: text, or lists and maps of it."""
    problems = []
    for leaf in [leaf for name in names for leaf in _texts(tree.get((*path, name)), (*path, name))]:
        text = tree.get(leaf)
        folders = list(dict.fromkeys([_folder(tree, leaf), Path.cwd()]))
        if found := _find(text, folders):
            tree.get(leaf[:-1])[leaf[-1]] = str(found)
        else:
            problems.append(_missing(text, folders, leaf))
    return problems


def _texts(value: Any, path: Key) -> Iterator[Key]:
    """Yield the paths of all texts in a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if isinstance(value, str):
        yield path
    for key, part in inner:
        yield from _texts(part, (*path, key))


def _folder(tree: Tree, path: Key) -> Path:
    """Return where relative paths start at the nearest place that is known."""
    known = next(path[:length] for length in range(len(path), -1, -1) if path[:length] in tree.places)
    return tree.places[known].folder


def looks_local(text: str) -> bool:
    """Return whether `text` can only be a path: it begins like one, or ends like a file of data or of a model."""
    return text.startswith((".", "/", "~")) or text.lower().endswith(_SUFFIXES)


def _find(text: str, folders: list[Path]) -> Path | None:
    for folder in folders:
        try:
            path = (folder / Path(text).expanduser()).absolute()
            if path.exists():
                return path.resolve()
        except (OSError, RuntimeError, ValueError):
            return None
    return None


def _missing(text: str, folders: list[Path], path: Key) -> Problem:
    why = f"looked in {' and '.join(map(str, folders))}" if not text.startswith(("/", "~")) else ""
    return Problem(f"there is no file or folder {text}{did_you_mean(text, _siblings(text, folders))}", why, path=path)


def _siblings(text: str, folders: list[Path]) -> list[str]:
    """Return names near a missing file, written as it is."""
    lead = text[: text.rfind("/") + 1]
    try:
        return [lead + file.name for folder in folders for file in (folder / Path(lead).expanduser()).iterdir()]
    except (OSError, RuntimeError, ValueError):
        return []
