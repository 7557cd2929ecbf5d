"""Data sources: a module of texts, a local file or folder, a dataset of the Hugging Face hub, or a plugin.

A row is a dict of the source's columns, which `columns` maps to neoplug's; a row of plain text has the one column
`text`. Local files are read directly, without a network, a cache or a copy on disk.
"""

import ast
import importlib
import importlib.util
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from neoplug.data.ingest.folders import Selection, files_of_glob, files_of_split, key_of_split
from neoplug.data.ingest.hub import from_hub, saved_dataset
from neoplug.data.ingest.readers import column_names_of, format_of, read_file, unpaired_surrogate
from neoplug.data.ingest.values import Reason, Row
from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError, did_you_mean
from neoplug.files import content_hash, sha256_of
from neoplug.recipe.paths import is_glob, looks_local
from neoplug.registry import OpenedSource
from neoplug.registry.confinement import confined
from neoplug.registry.modules import LITERAL, module_files


class RowSource(Protocol):
    """Reads the rows of one source."""

    @property
    def notes(self) -> list[str]:
        """Return sentences for the report, such as which files of a folder are not read."""

    def column_names(self) -> list[str]:
        """Return the columns that are known without reading a row; those of other formats are found in the rows."""

    def rows(self, only: Collection[str] | None = None) -> Iterator[Row | Reason]:
        """Yield all rows; each call starts again at the first. RecipeError where a file cannot be read.

        only  columns that may be used: others need not be read, and no fault of theirs is one of the row; None is all
        """

    def identity(self) -> Any:
        """Return hashes of everything that the rows depend on, in JSON types; a local path is not part of it."""


@dataclass(frozen=True)
class Texts:
    """Texts in memory."""

    texts: list[str]
    notes: list[str]

    def column_names(self) -> list[str]:
        """Return the one column of texts."""
        return ["text"]

    def rows(self, only: Collection[str] | None = None) -> Iterator[Row | Reason]:
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
    notes: list[str]

    def column_names(self) -> list[str]:
        """Return the columns in the schemas of parquet files."""
        return list(dict.fromkeys(name for file in self.files for name in column_names_of(file, self.key)))

    def rows(self, only: Collection[str] | None = None) -> Iterator[Row | Reason]:
        """Yield the rows of each file in turn."""
        return (row for file in self.files for row in read_file(file, self.key, only))

    def identity(self) -> Any:
        """Return the format of each file, which selects its reader, and its hash."""
        try:
            return [[format_of(file), sha256_of(file)] for file in self.files]
        except OSError as error:
            raise RecipeError([Problem(f"a data file cannot be read: {error}", path=self.key)]) from error


@dataclass(frozen=True)
class PluginRows:
    """The rows that a plugin yields."""

    source: OpenedSource

    @property
    def notes(self) -> list[str]:
        """Return no sentences."""
        return []

    def column_names(self) -> list[str]:
        """Return no columns: the rows show them."""
        return []

    def rows(self, only: Collection[str] | None = None) -> Iterator[Row | Reason]:
        """Yield all rows; one that JSON cannot hold is replaced by the reason."""
        return (_no_json(row, only) or row for row in self.source.rows())

    def identity(self) -> Any:
        """Return the plugin's code and what it says of the rows."""
        return self.source.identity()


def _no_json(row: Row, only: Collection[str] | None) -> Reason:
    """Return the reason why JSON cannot hold the used columns of a row; an empty text where it can.

    A value of another type is a fault of its column, or is found when the row is hashed.
    """
    try:
        return unpaired_surrogate(row, only)
    except (TypeError, ValueError, RecursionError) as error:  # a key that is no text; a value that contains itself
        return f"a value that cannot be hashed ({error})"


@dataclass(frozen=True)
class FirstRows:
    """The first `count` rows of another source."""

    source: RowSource
    count: int

    @property
    def notes(self) -> list[str]:
        """Return the sentences of `source`."""
        return self.source.notes

    def column_names(self) -> list[str]:
        """Return the columns of `source`."""
        return self.source.column_names()

    def rows(self, only: Collection[str] | None = None) -> Iterator[Row | Reason]:
        """Yield the first rows, without reading further ones."""
        return islice(self.source.rows(only), self.count)

    def identity(self) -> Any:
        """Return the count and the identity of `source`."""
        return [self.count, self.source.identity()]


def open_source(
    source: str,
    split: str = "train",
    key: Key = ("data", "source"),
    *,
    streaming: bool = False,
    name: str | None = None,
    revision: str | None = None,
) -> RowSource:
    """Return the reader of `source`, which yields the rows in their order in the source.

    source     `python:MODULE`, a file, a glob, a folder, or a hub id
    key        the recipe's key of the source, for errors
    streaming  read a dataset of the hub without downloading it; no effect on a local source
    name       the configuration of a folder or of a dataset of the hub
    revision   the commit, tag or branch of a dataset of the hub
    raises     RecipeError where there is no such source, configuration or split
    """
    path = Path(source).expanduser()
    if not is_local(source):
        return from_hub(source, split, key, streaming=streaming, name=name, revision=revision)
    require_none(revision, "revision", f"{source} is local, and only a dataset of the hub has revisions", key)
    if path.is_dir() and not (path / "state.json").is_file() and not (path / "dataset_dict.json").is_file():
        return _files(files_of_split(path, split, key, name), key)
    require_none(name, "name", f"{source} has one configuration", key)
    if path.is_dir():
        return saved_dataset(path, split, key)
    if source.startswith("python:"):
        require_train_split(source, split, key)
        return Texts(_module_texts(source.removeprefix("python:"), key), [])
    if path.is_file():
        require_train_split(source, split, key)
        return Files([path], key, [])
    if is_glob(source):
        return _files(files_of_glob(source, split, key), key)
    raise RecipeError([_missing(path, key)])


def _files(selection: Selection, key: Key) -> Files:
    return Files(selection.files, key, selection.notes)


def require_none(value: str | None, name: str, why: str, key: Key) -> None:
    """Raise RecipeError where the recipe has a value for a key that a source has no use for."""
    if value is not None:
        what = f"`{name}` is {value}, but {why}"
        raise RecipeError([Problem(what, fix=f"remove `{name}`", path=(*key[:-1], name))])


def is_local(source: str) -> bool:
    """Return whether `source` is read without the Hugging Face hub."""
    return source.startswith("python:") or looks_local(source) or Path(source).expanduser().exists()


def _missing(path: Path, key: Key) -> Problem:
    """Return the problem of a missing file or folder, which names the most similar one in its folder."""
    names = sorted(file.name for file in path.parent.iterdir()) if path.parent.is_dir() else []
    fix = "" if names else f"there is no folder {path.parent} either"
    return Problem(f"there is no file or folder {path}{did_you_mean(path.name, names)}", fix=fix, path=key)


def require_train_split(source: str, split: str, key: Key) -> None:
    """Raise RecipeError where `split` is not `train` for a source that has no other split.

    An `eval_source` without `eval_split` gets the `split` of the training source, which then is ignored.
    """
    if split != "train" and key[-1] != "eval_source":
        what, path = f"{source} has one split, `train`, but the recipe names `{split}`", key_of_split(key)
        raise RecipeError([Problem(what, fix=f"remove `{path[-1]}`", path=path)])


def _module_texts(name: str, key: Key) -> list[str]:
    """Return the texts of a module that has a {title: text} map of the module's name, like pydoc_data.topics.

    The recipe was checked: the module is one that is read without importing it, or the user consented to its import.
    """
    attribute = name.rpartition(".")[2]
    try:
        if name in LITERAL:
            texts = _literal(module_files(name)[-1], attribute)
        else:
            with confined(name):
                texts = getattr(importlib.import_module(name), attribute, None)
    except Exception as error:
        what = f"the module {name} cannot be imported: {type(error).__name__}: {error}"
        raise RecipeError([Problem(what, path=key)]) from error
    if not isinstance(texts, Mapping) or not all(isinstance(text, str) for text in texts.values()):
        what = f"the module {name} has no map of texts named `{attribute}`"
        why = "a `python:` source is a module with a {title: text} map named as the module's last part"
        raise RecipeError([Problem(what, why=why, fix="for example python:pydoc_data.topics", path=key)])
    return list(texts.values())


def _literal(file: Path, name: str) -> Any:
    """Return the literal that a Python file assigns to `name`; None where it assigns none."""
    for statement in ast.parse(file.read_bytes()).body:
        if isinstance(statement, ast.Assign) and [ast.unparse(target) for target in statement.targets] == [name]:
            return ast.literal_eval(statement.value)
    return None
