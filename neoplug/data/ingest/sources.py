"""Data sources: a module of texts, a local file or folder, or a dataset of the Hugging Face hub.

A row is a dict of the source's columns, which `columns` maps to their meaning; a row of plain text has the one column
`text`. Local files are read directly: no network, no cache, no second copy on disk.
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
T = TypeVar("T")
SPLIT_WORD = re.compile(rf"(?<![a-z])({'|'.join(sorted(SPLITS, key=len, reverse=True))})(?![a-z])")


class RowSource(Protocol):
    """Reads the rows of one source."""

    def rows(self) -> Iterator[Row | Reason]:
        """Yield all rows, from the first at each call; RecipeError where a file is not valid."""

    def identity(self) -> Any:
        """Return hashes of all that the rows depend on, in JSON types; not the location of the source."""


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
    """Data files; `key` is the recipe's key of the source, for errors."""

    files: list[Path]
    key: Key

    def rows(self) -> Iterator[Row | Reason]:
        """Yield the rows of each file in turn."""
        return (row for file in self.files for row in read_file(file, self.key))

    def identity(self) -> Any:
        """Return the hash of each file, and the suffix that selects its reader."""
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
    """A dataset of the hub that is streamed, not downloaded."""

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
        """Return the dataset's commit and the hub's metadata of its files; no row is read."""
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
        """Return the count and the identity of the other source."""
        return [self.count, self.source.identity()]


def open_source(
    source: str, split: str = "train", key: Key = ("data", "source"), *, streaming: bool = False
) -> RowSource:
    """Return the reader of `source`; it keeps the order of the rows.

    source     `python:MODULE`, a file, a folder, or a hub id
    key        the recipe's key of the source, for errors
    streaming  read a dataset of the hub without downloading it; no effect on a local source
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
    """Return the problem of a missing file or folder, with the most similar name in its folder."""
    names = sorted(file.name for file in path.parent.iterdir()) if path.parent.is_dir() else []
    fix = "" if names else f"there is no folder {path.parent} either"
    return Problem(f"there is no file or folder {path}{did_you_mean(path.name, names)}", fix=fix, path=key)


def _only_train(source: str, split: str, key: Key) -> None:
    """Raise RecipeError where a source without splits has `split` set; the key does not apply to an `eval_source`."""
    if split != "train" and key[-1] != "eval_source":
        what, path = f"{source} has one split, `train`, but the recipe names `{split}`", _key_of_split(key)
        raise RecipeError([Problem(what, fix=f"remove `{path[-1]}`", path=path)])


def _key_of_split(key: Key) -> Key:
    """Return the recipe's key of the split of the source at `key`."""
    return key if key[-1] == "eval_split" else (*key[:-1], "split")


def _module_texts(name: str, key: Key) -> list[str]:
    """Return the texts of a module with a {title: text} map named as the module, as in pydoc_data.topics."""
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
        return _saved(folder, split, key)
    return Files(files_of_split(folder, split, key), key)


def files_of_split(folder: Path, split: str, key: Key = ("data", "source")) -> list[Path]:
    """Return the data files below `folder` that belong to `split`, sorted by name.

    If any name contains a split (train.jsonl, test/part-0.parquet), files without one are ignored; else all files are
    `train`. Text files are used only where there is no other data file, so that a README next to the data is ignored.
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
    return _pick(by_split, split, str(folder), key)


def _split_of(file: Path) -> str:
    """Return the split that the file's name or folders contain, the innermost first; else an empty string."""
    words = SPLIT_WORD.findall(file.with_suffix("").as_posix().lower())
    return SPLITS[words[-1]] if words else ""


def _pick(by_split: Mapping[str, T], split: str, source: str, key: Key) -> T:
    """Return the value of a split, also by another usual name of it; RecipeError where there is none."""
    wanted = split if split in by_split else SPLITS.get(split, split)
    if wanted not in by_split:
        what = f"{source} has no split `{split}`{did_you_mean(split, list(by_split))}"
        raise RecipeError([Problem(what, fix=f"it has {', '.join(by_split)}", path=_key_of_split(key))])
    return by_split[wanted]


def _saved(folder: Path, split: str, key: Key) -> RowSource:
    """Return the reader of a dataset that save_to_disk of `datasets` wrote."""
    import datasets

    saved = datasets.load_from_disk(str(folder))
    if not isinstance(saved, Mapping):
        _only_train(str(folder), split, key)
        return Table(saved, "train")
    return Table(_pick(saved, split, str(folder), key), "train")


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
