"""Where rows come from: a module of texts, local files, a folder of them, or a dataset of the Hugging Face hub.

A row is a map of columns as the source has them. Nothing here knows what a column means; a row of plain text has the
one column `text`. Local sources are read by their own formats: no network, no cache, no second copy on disk.
"""

import importlib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from neoplug.data.ingest.readers import READERS, Fault, Row, read_file
from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError, did_you_mean
from neoplug.files import content_hash, sha256_of
from neoplug.recipe.paths import looks_local

SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
SPLIT_WORD = re.compile(rf"(?<![a-z])({'|'.join(sorted(SPLITS, key=len, reverse=True))})(?![a-z])")


class Source(Protocol):
    """Where rows come from."""

    def rows(self) -> Iterator[Row | Fault]:
        """Yield the rows from the first on, each time it is called; RecipeError where a file is not what it says."""

    def identity(self) -> Any:
        """Return what the rows depend on, ready for JSON: the hash of all content, not where it lies."""


@dataclass(frozen=True)
class Texts:
    """Texts in memory."""

    texts: list[str]

    def rows(self) -> Iterator[Row | Fault]:
        """Yield a row a text."""
        return ({"text": text} for text in self.texts)

    def identity(self) -> Any:
        """Return the hash of the texts."""
        return content_hash(self.texts)


@dataclass(frozen=True)
class Files:
    """Data files; `key` is the recipe's key that names them."""

    files: list[Path]
    key: Key

    def rows(self) -> Iterator[Row | Fault]:
        """Yield the rows of one file after the other."""
        return (row for file in self.files for row in read_file(file, self.key))

    def identity(self) -> Any:
        """Return the hash of each file, and the suffix that says how it is read."""
        try:
            return [[file.suffix.lower(), sha256_of(file)] for file in self.files]
        except OSError as error:
            raise RecipeError([Problem(f"a data file cannot be read: {error}", path=self.key)]) from error


@dataclass(frozen=True)
class Table:
    """A dataset of the library `datasets`, on disk."""

    table: Any
    split: str

    def rows(self) -> Iterator[Row | Fault]:
        """Yield the rows."""
        return iter(self.table)

    def identity(self) -> Any:
        """Return the hash of each file behind it, and what is taken of them; of a table in memory, that of its rows."""
        files = [sha256_of(Path(file["filename"])) for file in self.table.cache_files]
        rows = [] if files else [content_hash(str(row)) for row in self.table]
        return [self.split, len(self.table), str(self.table.features), files, rows]


@dataclass(frozen=True)
class Stream:
    """A dataset of the hub that is read from its first row on, and never downloaded as a whole."""

    name: str
    builder: Any
    split: str
    key: Key

    def rows(self) -> Iterator[Row | Fault]:
        """Yield the rows as they arrive."""
        try:
            yield from self.builder.as_streaming_dataset(split=self.split)
        except Exception as error:  # the network and a dataset's own files fail in their own ways
            raise RecipeError([_not_loaded(self.name, self.split, error, self.key)]) from error

    def identity(self) -> Any:
        """Return the dataset's commit, and what the hub says of its files: no row is read for it."""
        files = getattr(self.builder.config, "data_files", None) or {}
        origin = {str(split): getattr(found, "origin_metadata", None) for split, found in files.items()}
        return [self.name, self.split, self.builder.hash, repr(origin)]


@dataclass(frozen=True)
class First:
    """The first rows of another source."""

    source: Source
    count: int

    def rows(self) -> Iterator[Row | Fault]:
        """Yield so many rows, and ask for no more."""
        return islice(self.source.rows(), self.count)

    def identity(self) -> Any:
        """Return what the rows depend on."""
        return [self.count, self.source.identity()]


def open_source(source: str, split: str = "train", key: Key = ("data", "source"), *, streaming: bool = False) -> Source:
    """Return where the rows of `source` come from; they keep its own order.

    source     `python:MODULE`, a file, a folder, or a hub id
    key        the recipe's key that names the source, for errors
    streaming  read a dataset of the hub without a download; local sources are never read as a whole
    raises     RecipeError where there is no such source or split
    """
    if source.startswith("python:"):
        _only_train(source, split, key)
        return Texts(_module_texts(source.removeprefix("python:"), key))
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(path, split, key)
    if path.is_file():
        _only_train(source, split, key)
        return Files([path], key)
    if looks_local(source):
        raise RecipeError([missing(path, key)])
    return _from_hub(source, split, key, streaming=streaming)


def is_local(source: str) -> bool:
    """Return whether reading `source` needs no network."""
    return source.startswith("python:") or looks_local(source) or Path(source).expanduser().exists()


def missing(path: Path, key: Key) -> Problem:
    """Describe a file or folder that is not there, with the nearest name beside it."""
    beside = sorted(file.name for file in path.parent.iterdir()) if path.parent.is_dir() else []
    fix = "" if beside else f"there is no folder {path.parent} either"
    return Problem(f"there is no file or folder {path}{did_you_mean(path.name, beside)}", fix=fix, path=key)


def _only_train(source: str, split: str, key: Key) -> None:
    """Refuse another split of what has none; `split` belongs to `source`, so it asks nothing of an `eval_source`."""
    if split != "train" and key[-1] != "eval_source":
        what, path = f"{source} has one split, `train`, but `{split}` is asked for", _split_of_key(key)
        raise RecipeError([Problem(what, fix=f"leave `{path[-1]}` out", path=path)])


def _split_of_key(key: Key) -> Key:
    """Return the key that names the split of the source at `key`."""
    return key if key[-1] == "eval_split" else (*key[:-1], "split")


def _module_texts(name: str, key: Key) -> list[str]:
    """Return the texts of a module that holds a map of them under its own last name, as pydoc_data.topics does."""
    try:
        module = importlib.import_module(name)
    except Exception as error:
        what = f"the module {name} cannot be imported: {type(error).__name__}: {error}"
        raise RecipeError([Problem(what, path=key)]) from error
    attribute = name.rpartition(".")[2]
    texts = getattr(module, attribute, None)
    if not isinstance(texts, Mapping) or not all(isinstance(text, str) for text in texts.values()):
        what = f"the module {name} has no map of texts named `{attribute}`"
        why = "a `python:` source is a module that holds {title: text} under its own last name"
        raise RecipeError([Problem(what, why=why, fix="for example python:pydoc_data.topics", path=key)])
    return list(texts.values())


def _folder(folder: Path, split: str, key: Key) -> Source:
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return _saved(folder, split, key)
    return Files(files_of_split(folder, split, key), key)


def files_of_split(folder: Path, split: str, key: Key = ("data", "source")) -> list[Path]:
    """Return the data files below `folder` that belong to `split`, sorted by name.

    Where names carry a split (train.jsonl, test/part-0.parquet), only those files count; else all of them are `train`.
    Text files count only where there is nothing else, so that a README beside the data is no data.
    """
    found = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.suffix.lower() in READERS]
    found = [file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    found = [file for file in found if file.suffix.lower() not in (".txt", ".md")] or found
    if not found:
        fix = f"a data file ends in one of {', '.join(READERS)}"
        raise RecipeError([Problem(f"the folder {folder} holds no data file", fix=fix, path=key)])
    by_split: dict[str, list[Path]] = {}
    for file in found:
        by_split.setdefault(_split_of(file.relative_to(folder)), []).append(file)
    if list(by_split) == [""]:
        by_split = {"train": found}
    by_split.pop("", None)
    return _pick(by_split, split, str(folder), key)


def _split_of(file: Path) -> str:
    """Return the split that a file's name or folders carry, the innermost word first, or an empty string."""
    words = SPLIT_WORD.findall(file.with_suffix("").as_posix().lower())
    return SPLITS[words[-1]] if words else ""


def _pick(by_split: Mapping[str, Any], split: str, source: str, key: Key) -> Any:
    wanted = split if split in by_split else SPLITS.get(split, split)
    if wanted not in by_split:
        what = f"{source} has no split `{split}`{did_you_mean(split, list(by_split))}"
        raise RecipeError([Problem(what, fix=f"it has {', '.join(by_split)}", path=_split_of_key(key))])
    return by_split[wanted]


def _saved(folder: Path, split: str, key: Key) -> Source:
    """Return what `datasets` wrote with save_to_disk."""
    import datasets

    saved = datasets.load_from_disk(str(folder))
    if not isinstance(saved, Mapping):
        _only_train(str(folder), split, key)
        return Table(saved, "train")
    return Table(_pick(saved, split, str(folder), key), "train")


def _from_hub(name: str, split: str, key: Key, *, streaming: bool) -> Source:
    import datasets

    try:
        if streaming:
            return Stream(name, datasets.load_dataset_builder(name), split, key)
        return Table(datasets.load_dataset(name, split=split), split)
    except Exception as error:  # the hub, the network and a dataset's own files fail in their own ways
        raise RecipeError([_not_loaded(name, split, error, key)]) from error


def _not_loaded(name: str, split: str, error: Exception, key: Key) -> Problem:
    first_line = str(error).strip().partition("\n")[0]
    what = f"the dataset {name} (split {split}) cannot be loaded: {type(error).__name__}: {first_line}"
    why = f"there is no file or folder {name} here, so it was taken for a name on the Hugging Face hub"
    return Problem(what, why=why, path=key)
