"""The contents of a folder: its files' sizes and hashes, recorded when they are written, verified before they are read.

    contents.json   {format, files: {path: {size, sha256}}, sha256: hash of `files`}

Checkpoints, runs, and the models and tokens in the cache have it. Files that it does not name are not verified.
"""

import json
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from neoplug.errors import DamageError
from neoplug.files.atomic import (
    PARTIAL,
    content_hash,
    folder_atomically,
    remove,
    remove_abandoned,
    sha256_of,
    write_atomically,
)
from neoplug.files.json_reader import read_json

logger = logging.getLogger(__name__)

RECORD = "contents.json"
FORMAT = 1
RESTORE = f"restore it from a copy of the run; or remove {RECORD} of the run, and it is used unverified"


@contextmanager
def recorded_folder(path: Path) -> Iterator[Path]:
    """Yield the draft of a new folder, as `folder_atomically` does; the record of its files is written last."""
    with folder_atomically(path) as draft:
        yield draft
        record(draft, ".")


def record(folder: Path, *parts: str, without: Collection[str] = ()) -> None:
    """Record the present contents of files in `folder`, and keep what is recorded of its other files.

    parts    paths in the folder, of files or of folders with all their files; absent ones have no entry afterwards
    without  names of files that are left out
    """
    files = [file for part in parts for file in files_below(folder / part) if file.name not in without]
    entries = {file.relative_to(folder).as_posix(): _entry(file) for file in files}
    known = recorded(folder) if (folder / RECORD).is_file() else {}
    known = {name: entry for name, entry in known.items() if not _is_in(name, parts)}
    whole = _with_hash(dict(sorted((known | entries).items())))
    write_atomically(folder / RECORD, json.dumps(whole, indent=1) + "\n")


def recorded(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """Return the recorded path -> {size, sha256} of the folder's files. Raises DamageError where there is none."""
    fix = "restore it; or remove it, and the files are used unverified"
    whole = read_json(folder / RECORD, fix)
    files = whole.get("files")
    if not isinstance(files, dict) or whole != _with_hash(files):
        raise DamageError(folder / RECORD, "does not have the contents that were written", fix)
    return files


def _with_hash(files: dict[str, Any]) -> dict[str, Any]:
    """Return the whole content of a record."""
    return {"format": FORMAT, "files": files, "sha256": content_hash(files)}


def damage(folder: Path, *parts: str) -> str:
    """Return what is wrong with the first recorded file that differs from its record, such as "a/b is missing".

    parts  paths in the folder, of files or of folders with all their files; none: all files are verified

    It is empty where all are as they were written.
    """
    try:
        files = recorded(folder)
    except DamageError as error:
        return f"{error.file.name} {error.what}"
    chosen = {name: entry for name, entry in files.items() if not parts or _is_in(name, parts)}
    found = (_difference(folder / name, entry) for name, entry in chosen.items())
    return next((f"{name} {what}" for name, what in zip(chosen, found, strict=True) if what), "")


def damage_in_run(folder: Path) -> str:
    """Return which file of a model or an adapter in the folder of a run is damaged, and how; empty where none is."""
    folder = folder.resolve()
    found = damage(folder.parent, folder.name) if (folder.parent / RECORD).is_file() else ""
    return found and str(folder.parent / found)


def intact(folder: Path, remedy: str) -> bool:
    """Return whether a folder in the cache is there, complete and undamaged.

    A damaged one is removed, with a warning that ends with `remedy`, as are drafts that killed processes left there.
    """
    remove_abandoned(folder.parent, f".*{PARTIAL}")
    if not folder.exists():
        return False
    stamps = [(file, file.stat()) for file in files_below(folder)]
    found = _damage_once(folder, tuple((file, at.st_ino, at.st_size, at.st_mtime_ns) for file, at in stamps))
    if found:
        logger.warning("%s is damaged: %s; %s", folder, found, remedy)
        remove(folder)
    return not found


@lru_cache(maxsize=32)
def _damage_once(folder: Path, stamps: tuple[tuple[Path, int, int, int], ...]) -> str:
    """Return the damage of a folder; a process that needs it several times hashes it again only if `stamps` differ."""
    return damage(folder)


def files_below(path: Path) -> list[Path]:
    """Return all files in a folder and the folders in it; a file itself."""
    return sorted(file for file in (path, *path.rglob("*")) if file.is_file())


def _entry(file: Path) -> dict[str, Any]:
    return {"size": file.stat().st_size, "sha256": sha256_of(file)}


def _difference(file: Path, entry: Mapping[str, Any]) -> str:
    """Return how a file differs from its entry in a record; empty where it does not."""
    try:
        if not file.is_file():
            return "is missing"
        size = file.stat().st_size
        if size != entry["size"]:
            return f"has {size:,} bytes of the {entry['size']:,} that were written" if size else "is empty"
        return "" if sha256_of(file) == entry["sha256"] else "does not have the contents that were written (SHA-256)"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _is_in(name: str, parts: Iterable[str]) -> bool:
    return any(name == part or name.startswith(f"{part}/") for part in parts)
