"""Where rows come from: a module of texts, local files, a folder of them, or a dataset of the Hugging Face hub.

A row is a map of columns as the source has them. Nothing here knows what a column means; a row of plain text has the
one column `text`. Local sources are read by their own formats: no network, no cache, no second copy on disk.
"""

import importlib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from neoplug.data.readers import READERS, Row, read_file
from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError, did_you_mean

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


def read_rows(source: str, split: str = "train", key: Key = ("data", "source")) -> Iterator[Row]:
    """Yield the rows of `source`, in its own order.

    source  `python:MODULE`, a file, a folder, or a hub id
    key     the recipe's key that names the source, for errors
    raises  RecipeError where there is no such source or split, or a file is not what its name says
    """
    if source.startswith("python:"):
        _only_train(source, split, key)
        return _module_rows(source.removeprefix("python:"), key)
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder_rows(path, split, key)
    if path.is_file():
        _only_train(source, split, key)
        return read_file(path, key)
    if looks_local(source):
        raise RecipeError([missing(path, key)])
    return _hub_rows(source, split, key)


def is_local(source: str) -> bool:
    """Return whether reading `source` needs no network."""
    return source.startswith("python:") or looks_local(source) or Path(source).expanduser().exists()


def looks_local(source: str) -> bool:
    """Return whether `source` is written as a path: it starts like one or ends like a data file."""
    return source.startswith((".", "/", "~")) or Path(source).suffix.lower() in READERS


def missing(path: Path, key: Key) -> Problem:
    """Describe a file or folder that is not there, with the nearest name beside it."""
    beside = sorted(file.name for file in path.parent.iterdir()) if path.parent.is_dir() else []
    fix = "" if beside else f"there is no folder {path.parent} either"
    return Problem(f"there is no file or folder {path}{did_you_mean(path.name, beside)}", fix=fix, path=key)


def _only_train(source: str, split: str, key: Key) -> None:
    """Refuse another split of what has none; `split` belongs to `source`, so it asks nothing of other files."""
    if split != "train" and key == ("data", "source"):
        what = f"{source} has one split, `train`, but `{split}` is asked for"
        raise RecipeError([Problem(what, fix="leave `split` out", path=("data", "split"))])


def _module_rows(name: str, key: Key) -> Iterator[Row]:
    """Yield the texts of a module that holds a map of them under its own last name, as pydoc_data.topics does."""
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
    return ({"text": text} for text in texts.values())


def _folder_rows(folder: Path, split: str, key: Key) -> Iterator[Row]:
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return _saved_rows(folder, split, key)
    return (row for file in files_of_split(folder, split, key) for row in read_file(file, key))


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
    return _pick(by_split, split, str(folder))


def _split_of(file: Path) -> str:
    """Return the split that a file's name or folders carry, the innermost word first, or an empty string."""
    words = SPLIT_WORD.findall(file.with_suffix("").as_posix().lower())
    return SPLITS[words[-1]] if words else ""


def _pick(by_split: Mapping[str, Any], split: str, source: str) -> Any:
    wanted = split if split in by_split else SPLITS.get(split, split)
    if wanted not in by_split:
        what = f"{source} has no split `{split}`{did_you_mean(split, list(by_split))}"
        raise RecipeError([Problem(what, fix=f"it has {', '.join(by_split)}", path=("data", "split"))])
    return by_split[wanted]


def _saved_rows(folder: Path, split: str, key: Key) -> Iterator[Row]:
    """Yield the rows of what `datasets` wrote with save_to_disk."""
    import datasets

    saved = datasets.load_from_disk(str(folder))
    if not isinstance(saved, Mapping):
        _only_train(str(folder), split, key)
        return iter(saved)
    return iter(_pick(saved, split, str(folder)))


def _hub_rows(name: str, split: str, key: Key) -> Iterator[Row]:
    import datasets

    try:
        return iter(datasets.load_dataset(name, split=split))
    except Exception as error:  # the hub, the network and a dataset's own files fail in their own ways
        first_line = str(error).strip().partition("\n")[0]
        what = f"the dataset {name} (split {split}) cannot be loaded: {type(error).__name__}: {first_line}"
        why = f"there is no file or folder {name} here, so it was taken for a name on the Hugging Face hub"
        raise RecipeError([Problem(what, why=why, path=key)]) from error
