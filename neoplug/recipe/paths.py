"""Local paths in a recipe: resolved from the file that has them, then from the current folder."""

import glob
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from neoplug.errors import SHOWN_PROBLEMS, Problem, did_you_mean
from neoplug.errors import Path as Key
from neoplug.files.atomic import too_long
from neoplug.recipe.tree import Tree
from neoplug.registry.options import path_fields

PATHS: tuple[Key, ...] = (
    ("teacher", "model"),
    ("teacher", "chat_template"),
    ("student", "model"),
    ("teacher", "adapter_path"),
    ("student", "adapter_path"),
    ("data", "chat_template"),
)
_SUFFIXES = (".json", ".jsonl", ".parquet", ".csv", ".txt", ".md", ".gguf", ".safetensors", ".jinja")
_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_NO_PATH = re.compile(r"(pypi|python):|own$|.*\{", re.DOTALL)  # a chat template may be Jinja text itself


def make_absolute(tree: Tree) -> list[Problem]:
    """Make local paths in `tree.values` absolute, in place; return a problem for each that does not exist.

    A text that may also be something else, as a hub id, is left as it is where no such file exists.
    """
    texts = {path: text for path in PATHS if isinstance(text := tree.get(path), str)} | data_sources(tree)
    named = [path for path, text in texts.items() if text and not _NO_PATH.match(text)]
    return _make_absolute(tree, named, looks_local)


def output_problems(tree: Tree) -> list[Problem]:
    """Return a problem where the names in `output_dir` are too long for the file system."""
    path: Key = ("output_dir",)
    text = tree.get(path)
    if not isinstance(text, str) or not (why := too_long(Path(text))):
        return []
    return [Problem("the run cannot be written to `output_dir`", why, "choose a shorter one", path)]


def data_sources(tree: Tree) -> dict[Key, str]:
    """Return the sources of the data that are texts, with their paths in the recipe."""
    return {path: text for path in tree.sources if isinstance(text := tree.get(path), str)}


def make_options_absolute(tree: Tree, path: Key, cls: type) -> list[Problem]:
    """Do the same for the options of a plugin, which are at `path`: those of type `Path`, or lists or maps of it."""
    try:
        names = path_fields(cls)
    except Exception:  # types that cannot be read: building the plugin reports it
        return []
    leaves = [leaf for name in names for leaf in texts_below(tree.get((*path, name)), (*path, name))]
    return _make_absolute(tree, leaves, lambda _: True)


def _make_absolute(tree: Tree, paths: list[Key], is_path: Callable[[str], bool]) -> list[Problem]:
    problems: list[Problem] = []
    for path in paths:
        text = tree.get(path)
        folders = list(dict.fromkeys([tree.nearest(path).folder, Path.cwd()]))
        try:
            found = _find(text, folders)
        except (OSError, RuntimeError, ValueError) as error:  # a name that is too long; `~somebody`
            reason = (isinstance(error, OSError) and error.strerror) or error
            problems.append(Problem(f"{text} is no path that can be read: {reason}", path=path))
            continue
        if found:
            tree.get(path[:-1])[path[-1]] = str(found)
            if found.exists() and not (found.is_file() or found.is_dir()):
                problems.append(Problem(f"{text} is a pipe, a device or a socket, but no file or folder", path=path))
        elif is_path(text):
            names = _siblings(text, folders) if len(problems) < SHOWN_PROBLEMS else ()  # it is slow
            problems.append(_missing(text, folders, names, path))
    return problems


def texts_below(value: Any, path: Key) -> Iterator[Key]:
    """Yield the path of each text in a value that is at `path`."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if isinstance(value, str):
        yield path
    for key, part in inner:
        yield from texts_below(part, (*path, key))


def looks_local(text: str) -> bool:
    """Return whether `text` can only be a local path: by its first character or file name extension, or as a glob.

    A file may be compressed (`.jsonl.gz`).
    """
    return text.startswith((".", "/", "~")) or text.lower().endswith((*_SUFFIXES, *_COMPRESSIONS)) or is_glob(text)


def is_glob(text: str) -> bool:
    """Return whether `text` is a pattern of file names, such as `data/*.jsonl`; hub ids have no such characters."""
    return glob.has_magic(text) and not text.startswith("python:")


def _find(text: str, folders: list[Path]) -> Path | None:
    """Return the file, folder or pattern that `text` names. Raises OSError, RuntimeError or ValueError for no path."""
    for folder in folders:
        path = (folder / Path(text).expanduser()).absolute()
        if path.exists():
            return path.resolve()
        if is_glob(text) and glob.glob(pattern := _pattern(text, folder), recursive=True):  # noqa: PTH207 -- may be absolute
            return Path(pattern)
    return None


def _pattern(text: str, folder: Path) -> str:
    """Return the glob `text` below a folder, whose own name is no pattern."""
    return str(Path(glob.escape(str(folder))) / Path(text).expanduser())


def _missing(text: str, folders: list[Path], names: Iterable[str], path: Key) -> Problem:
    why = f"looked in {' and '.join(map(str, folders))}" if not text.startswith(("/", "~")) else ""
    if is_glob(text):
        return Problem(f"no file matches {text}", why, path=path)
    return Problem(f"there is no file or folder {text}{did_you_mean(text, names)}", why, path=path)


def _siblings(text: str, folders: list[Path]) -> Iterator[str]:
    """Yield the names in the folders of a missing file, with the prefix that `text` has."""
    lead = text[: text.rfind("/") + 1]
    with suppress(OSError, RuntimeError, ValueError):
        for folder in folders:
            yield from (lead + file.name for file in (folder / Path(lead).expanduser()).iterdir())
