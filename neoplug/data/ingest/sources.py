"""Data sources: a module of texts, a local file or folder, or a dataset of the Hugging Face hub.

A row is a dict of the source's columns, which `columns` maps to neoplug's; a row of plain text has the one column
`text`. Local files are read directly, without a network, a cache or a copy on disk.
"""

import importlib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

from neoplug.data.ingest.readers import READERS, Reason, Row, read_file
from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError, did_you_mean
from neoplug.files import content_hash, sha256_of
from neoplug.recipe.paths import looks_local

SPLITS = {  # word in a file's name, or in a recipe -> split
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
T = TypeVar("T")
SPLIT_WORD = re.compile(rf"(?<![a-z])({'|'.join(sorted(SPLITS, key=len, reverse=True))})(?![a-z])")


class RowSource(Protocol):
    """Reads the rows of one source."""

    def rows(self) -> Iterator[Row | Reason]:
        """Yield all rows; each call starts again at the first. RecipeError where a file cannot be read."""

    def identity(self) -> Any:
        """Return hashes of everything that the rows depend on, in JSON types; a local path is not part of it."""


@dataclass(frozen=True)
class Texts:
    """Texts in memory."""

    texts: list[str]

    def rows(self) -> Iterator[Row | Reason]:
        """Yield one row per text."""
        return ({"text": text} for text in self.texts)

    def identity(self) -> Any:
        """Return the hash of the texts."""
        return content_hash(self.texts)


@dataclass(frozen=True)
class Files:
    """Local data files.

    key  the recipe's key of the source, for errors
    """

    files: list[Path]
    key: Key

    def rows(self) -> Iterator[Row | Reason]:
        """Yield the rows of each file in turn."""
        return (row for file in self.files for row in read_file(file, self.key))

    def identity(self) -> Any:
        """Return the suffix of each file, which selects its reader, and its hash."""
        try:
            return [[file.suffix.lower(), sha256_of(file)] for file in self.files]
        except OSError as error:
            raise RecipeError([Problem(f"a data file cannot be read: {error}", path=self.key)]) from error


@dataclass(frozen=True)
class Table:
    """A dataset of the library `datasets`, in memory or on disk."""

    table: Any
    split: str

    def rows(self) -> Iterator[Row | Reason]:
        """Yield the rows."""
        return iter(self.table)

    def identity(self) -> Any:
        """Return split, length, columns and the hash of each Arrow file; of a table in memory, the hash of each row."""
        files = [sha256_of(Path(file["filename"])) for file in self.table.cache_files]
        rows = [] if files else [content_hash(str(row)) for row in self.table]
        return [self.split, len(self.table), str(self.table.features), files, rows]


@dataclass(frozen=True)
class Stream:
    """A dataset of the hub that is read while it is received, and not stored on disk."""

    name: str
    builder: Any
    split: str
    key: Key

    def rows(self) -> Iterator[Row | Reason]:
        """Yield the rows as they are received."""
        try:
            yield from self.builder.as_streaming_dataset(split=self.split)
        except Exception as error:  # exceptions of the network, of `datasets` and of file formats have no common base
            raise RecipeError([_not_loaded(self.name, self.split, error, self.key)]) from error

    def identity(self) -> Any:
        """Return name, split, commit, and the hub's metadata of the dataset's files; no row is read."""
        files = getattr(self.builder.config, "data_files", None) or {}
        origin = {str(split): getattr(found, "origin_metadata", None) for split, found in files.items()}
        return [self.name, self.split, self.builder.hash, repr(origin)]


@dataclass(frozen=True)
class FirstRows:
    """The first `count` rows of another source."""

    source: RowSource
    count: int

    def rows(self) -> Iterator[Row | Reason]:
        """Yield the first rows, without reading further ones."""
        return islice(self.source.rows(), self.count)

    def identity(self) -> Any:
        """Return the count and the identity of `source`."""
        return [self.count, self.source.identity()]


def open_source(
    source: str, split: str = "train", key: Key = ("data", "source"), *, streaming: bool = False
) -> RowSource:
    """Return the reader of `source`, which yields the rows in their order in the source.

    source     `python:MODULE`, a file, a folder, or a hub id
    key        the recipe's key of the source, for errors
    streaming  read a dataset of the hub without downloading it; no effect on a local source
    raises     RecipeError where there is no such source or split
    """
    if source.startswith("python:"):
        _require_train_split(source, split, key)
        return Texts(_module_texts(source.removeprefix("python:"), key))
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(path, split, key)
    if path.is_file():
        _require_train_split(source, split, key)
        return Files([path], key)
    if looks_local(source):
        raise RecipeError([_missing(path, key)])
    return _from_hub(source, split, key, streaming=streaming)


def is_local(source: str) -> bool:
    """Return whether `source` is read without the Hugging Face hub."""
    return source.startswith("python:") or looks_local(source) or Path(source).expanduser().exists()


def _missing(path: Path, key: Key) -> Problem:
    """Return the problem of a missing file or folder, which names the most similar one in its folder."""
    names = sorted(file.name for file in path.parent.iterdir()) if path.parent.is_dir() else []
    fix = "" if names else f"there is no folder {path.parent} either"
    return Problem(f"there is no file or folder {path}{did_you_mean(path.name, names)}", fix=fix, path=key)


def _require_train_split(source: str, split: str, key: Key) -> None:
    """Raise RecipeError where `split` is not `train` for a source that has no other split.

    An `eval_source` without `eval_split` gets the `split` of the training source, which then is ignored.
    """
    if split != "train" and key[-1] != "eval_source":
        what, path = f"{source} has one split, `train`, but the recipe names `{split}`", _key_of_split(key)
        raise RecipeError([Problem(what, fix=f"remove `{path[-1]}`", path=path)])


def _key_of_split(key: Key) -> Key:
    """Return the recipe's key of the split, given that of the source."""
    return key if key[-1] == "eval_split" else (*key[:-1], "split")


def _module_texts(name: str, key: Key) -> list[str]:
    """Return the texts of a module that has a {title: text} map of the module's name, like pydoc_data.topics."""
    try:
        module = importlib.import_module(name)
    except Exception as error:
        what = f"the module {name} cannot be imported: {type(error).__name__}: {error}"
        raise RecipeError([Problem(what, path=key)]) from error
    attribute = name.rpartition(".")[2]
    texts = getattr(module, attribute, None)
    if not isinstance(texts, Mapping) or not all(isinstance(text, str) for text in texts.values()):
        what = f"the module {name} has no map of texts named `{attribute}`"
        why = "a `python:` source is a module with a {title: text} map named as the module's last part"
        raise RecipeError([Problem(what, why=why, fix="for example python:pydoc_data.topics", path=key)])
    return list(texts.values())


def _folder(folder: Path, split: str, key: Key) -> RowSource:
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return _saved_dataset(folder, split, key)
    return Files(files_of_split(folder, split, key), key)


def files_of_split(folder: Path, split: str, key: Key = ("data", "source")) -> list[Path]:
    """Return the data files below `folder` that belong to `split`, sorted by name.

    Where the path of any file contains a split (train.jsonl, test/part-0.parquet), files without one are ignored; else
    all files are `train`. Text files are used only where there is no other data file, so that a README is ignored.
    """
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.suffix.lower() in READERS]
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    files = [file for file in files if file.suffix.lower() not in (".txt", ".md")] or files
    if not files:
        fix = f"a data file ends in one of {', '.join(READERS)}"
        raise RecipeError([Problem(f"the folder {folder} has no data file", fix=fix, path=key)])
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split_of(file.relative_to(folder)), []).append(file)
    if list(by_split) == [""]:
        by_split = {"train": files}
    by_split.pop("", None)
    return _of_split(by_split, split, str(folder), key)


def _split_of(file: Path) -> str:
    """Return the split that a file's path contains, the last one of several; an empty string where it has none."""
    words = SPLIT_WORD.findall(file.with_suffix("").as_posix().lower())
    return SPLITS[words[-1]] if words else ""


def _of_split(by_split: Mapping[str, T], split: str, source: str, key: Key) -> T:
    """Return the value of `split`, or of the split that SPLITS has for this word; RecipeError where there is none."""
    wanted = split if split in by_split else SPLITS.get(split, split)
    if wanted not in by_split:
        what = f"{source} has no split `{split}`{did_you_mean(split, list(by_split))}"
        raise RecipeError([Problem(what, fix=f"it has {', '.join(by_split)}", path=_key_of_split(key))])
    return by_split[wanted]


def _saved_dataset(folder: Path, split: str, key: Key) -> RowSource:
    """Return the reader of a dataset that was written by `save_to_disk` of the library `datasets`."""
    import datasets

    saved = datasets.load_from_disk(str(folder))
    if not isinstance(saved, Mapping):
        _require_train_split(str(folder), split, key)
        return Table(saved, "train")
    return Table(_of_split(saved, split, str(folder), key), "train")


def _from_hub(name: str, split: str, key: Key, *, streaming: bool) -> RowSource:
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
    why = f"there is no file or folder {name} here, so it is read as the id of a dataset on the Hugging Face hub"
    return Problem(what, why=why, path=key)
