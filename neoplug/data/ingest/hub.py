"""Datasets of the library `datasets`: on the Hugging Face hub, streamed from it, or saved to disk."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neoplug.data.ingest.arrow import arrow_rows, converter, without_none
from neoplug.data.ingest.folders import key_of_split, of_split
from neoplug.data.ingest.values import Reason, Row
from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError, did_you_mean
from neoplug.files import content_hash, sha256_of

ROWS_AT_ONCE = 1024  # rows of a table in memory at once
COMMIT = re.compile(r"\b[0-9a-f]{40}\b")


@dataclass(frozen=True)
class _Dataset:
    """A dataset of the library `datasets`, which selects the files.

    commit  of a dataset of the hub, as far as the library tells
    """

    name: str
    split: str
    key: Key
    commit: str | None

    @property
    def notes(self) -> list[str]:
        """Return which commit is read."""
        return [f"{self.name} is read at commit {self.commit}"] if self.commit else []


@dataclass(frozen=True)
class Table(_Dataset):
    """A dataset in memory or on disk. Rows are read from Arrow: no image is decoded."""

    table: Any

    def column_names(self) -> list[str]:
        """Return all columns."""
        return list(self.table.column_names)

    def rows(self, only: Collection[str] | None = None) -> Iterator[Row | Reason]:
        """Yield the rows, with the columns in `only`."""
        names = [name for name in self.column_names() if only is None or name in only]
        if not names:
            yield from ({} for _ in range(len(self.table)))
            return
        try:
            for part in self.table.select_columns(names).with_format("arrow").iter(ROWS_AT_ONCE):
                for batch in part.to_batches():
                    yield from arrow_rows(batch)
        except Exception as error:  # `datasets`, pyarrow and the file system fail in their own ways
            what = f"the dataset {self.name} cannot be read: {type(error).__name__}: {error}"
            raise RecipeError([Problem(what, path=self.key)]) from error

    def identity(self) -> Any:
        """Return split, length, columns and the hash of each Arrow file; of a table in memory, the hash of each row."""
        try:
            files = [sha256_of(Path(file["filename"])) for file in self.table.cache_files]
        except OSError as error:
            what = f"a file of the dataset {self.name} cannot be read: {error}"
            raise RecipeError([Problem(what, path=self.key)]) from error
        rows = [] if files else [content_hash(str(row)) for row in self.rows()]
        return [self.split, len(self.table), str(self.table.features), files, rows]


@dataclass(frozen=True)
class Stream(_Dataset):
    """A dataset of the hub that is read while it is received, and not stored on disk."""

    builder: Any

    def column_names(self) -> list[str]:
        """Return no columns: the rows show them."""
        return []

    def rows(self, only: Collection[str] | None = None) -> Iterator[Row | Reason]:
        """Yield the rows as they are received, with the columns in `only` where the dataset declares its columns."""
        try:
            stream = self.builder.as_streaming_dataset(split=self.split)
            features = getattr(stream, "features", None)
            if not features:
                yield from ({name: without_none(value) for name, value in row.items()} for row in stream)
                return
            names = [name for name in features if only is None or name in only]
            converters = {name: converter(features.arrow_schema.field(name).type) for name in names}
            for row in stream.decode(False).select_columns(names) if names else ({} for _ in stream.decode(False)):
                yield {name: (converters[name] or _same)(value) for name, value in row.items()}
        except Exception as error:  # exceptions of the network, of `datasets` and of file formats have no common base
            raise RecipeError([_not_loaded(self.name, self.split, error, self.key)]) from error

    def identity(self) -> Any:
        """Return name, configuration, split, commit, and the hub's metadata of the files; no row is read."""
        config = self.builder.config
        files = getattr(config, "data_files", None) or {}
        origin = {str(split): getattr(found, "origin_metadata", None) for split, found in files.items()}
        return [self.name, getattr(config, "name", None), self.split, self.builder.hash, repr(origin)]


def _same(value: Any) -> Any:
    return value


def saved_dataset(folder: Path, split: str, key: Key) -> Table:
    """Return the reader of a dataset that was written by `save_to_disk` of the library `datasets`."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:
        what = f"the dataset {folder} cannot be read: {type(error).__name__}: {error}"
        raise RecipeError([Problem(what, path=key)]) from error
    by_split = saved if isinstance(saved, Mapping) else {"train": saved}
    wanted = "train" if key[-1] == "eval_source" and not isinstance(saved, Mapping) else split
    return Table(str(folder), "train", key, None, of_split(by_split, wanted, str(folder), key))


def from_hub(
    dataset: str, split: str, key: Key, *, streaming: bool, name: str | None, revision: str | None
) -> Table | Stream:
    """Return the reader of a dataset of the hub.

    Raises RecipeError where it cannot be loaded, or is not at the commit `revision`: where the hub is not reached,
    `datasets` reads what its cache has, whatever the revision.
    """
    import datasets

    given = {option: value for option, value in (("name", name), ("revision", revision)) if value is not None}
    try:
        if streaming:
            builder = datasets.load_dataset_builder(dataset, **given)
            found: Table | Stream = Stream(
                dataset, split, key, _commit_in([str(getattr(builder, "hash", ""))]), builder
            )
        else:
            table = datasets.load_dataset(dataset, split=split, **given)
            found = Table(dataset, split, key, _commit_in(file["filename"] for file in table.cache_files), table)
    except Exception as error:  # the hub, the network and a dataset's own files fail in their own ways
        raise RecipeError([_not_loaded(dataset, split, error, key, **given)]) from error
    if revision and COMMIT.fullmatch(revision) and found.commit and found.commit != revision:
        what = f"the dataset {dataset} is at commit {found.commit}, and the recipe names {revision}"
        why = "the hub is not reached, and `datasets` takes the newest commit that its cache has"
        raise RecipeError([Problem(what, why, "read it once with network", (*key[:-1], "revision"))])
    return found


def _commit_in(texts: Iterable[str]) -> str | None:
    """Return the commit in the first path of the cache of `datasets`, whose folders are named after commits."""
    return next((match[0] for text in texts if (match := COMMIT.search(text))), None)


def _not_loaded(
    dataset: str, split: str, error: Exception, key: Key, name: str | None = None, revision: str | None = None
) -> Problem:
    """Return the problem of a dataset that cannot be loaded, with all that the library says about what there is."""
    text = " ".join(str(error).split())
    what = f"the dataset {dataset} (split {split}) cannot be loaded: {type(error).__name__}: {text}"
    quoted = re.findall(r"""(?<!\w)['"]([^'"]+)['"]""", text)
    known = [other for other in quoted if other not in (name, split)]
    kind = f"{type(error).__name__} {text}".replace(dataset, "").lower()
    if "revision" in kind and revision is not None:
        return Problem(what, fix="name a commit, tag or branch of the dataset", path=(*key[:-1], "revision"))
    if "config" in kind:
        hint = did_you_mean(name, known) if name else ""
        fix = f"name a configuration of the dataset, as in name: {known[0] if known else 'NAME'}"
        return Problem(what + hint, fix=fix, path=(*key[:-1], "name"))
    if "split" in kind:
        hint = did_you_mean(split, known)
        return Problem(what + hint, fix="name a split of the dataset", path=key_of_split(key))
    if "dataset scripts" in kind:
        fix = "read the files that the hub made from it: revision: refs/convert/parquet"
        return Problem(what, why="the dataset is a Python script, which `datasets` does not run", fix=fix, path=key)
    why = f"there is no file or folder {dataset} here, so it is read as the id of a dataset on the Hugging Face hub"
    if "offline" in kind:
        return Problem(what, why, "unset HF_HUB_OFFLINE and HF_DATASETS_OFFLINE, or name a local file", key)
    if re.search(r"gated|\b40[13]\b", kind):
        return Problem(what, why, "log in with `hf auth login`, and accept the dataset's terms on its page", key)
    fix = "check the name of the dataset, and the network" if "reach" in kind else ""
    return Problem(what, why, fix, key)
