"""Archives of runs: a zip file without compression, the same bytes for the same run; hostile ones are refused.

Without compression an archive is as large as what it holds, so that no small one fills a disk. It holds the files of a
run's directory that are needed to replay it; `contents.json` among them has the size and hash of each.
"""

from __future__ import annotations

import io
import re
import shutil
import stat
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from neoplug.errors import UsageError
from neoplug.files import cache_root, file_atomically, folder_atomically, lock, sha256_of
from neoplug.files.contents import RECORD, damage, intact, recorded

NEEDED = ("recipe.yaml", "lock.json", "metrics.jsonl", "result.json")
MOST_FILES = 10_000
MOST_BYTES = 2**31 - 2**24
LARGEST_DIRECTORY = 2**22  # bytes of the list of files at the end of an archive
_END = b"PK\5\6"  # the record that ends a zip file, of 22 bytes where it has no comment
_END_OF_LARGE = b"PK\6\7"  # the record before it in a file of more than 4 GiB, of 20 bytes
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first date of zip files
_PART = re.compile(r"(?!\.)[^/\\:\x00-\x1f\x7f]{1,200}")  # of a name: no hidden file, so neither `.` nor `..`


def write_archive(path: Path, files: Mapping[str, Path]) -> None:
    """Write a new archive of files by their names in it, through the disk: no file is held in memory.

    Raises:
        UsageError: a name or the size is beyond the limits.
        DiskError: it cannot be written.
    """
    size = sum(file.stat().st_size for file in files.values())
    names = [str(name) for name in files]
    if (why := _objection(names)) or (why := _too_large(size)):
        raise UsageError(f"{path} cannot be written\nwhy: {why}")
    with file_atomically(path) as draft, ZipFile(draft, "w", ZIP_STORED) as archive:
        for name, file in sorted(files.items()):
            entry = ZipInfo(name, _EPOCH)
            entry.create_system, entry.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            entry.file_size = file.stat().st_size
            with file.open("rb") as source, archive.open(entry, "w") as target:
                shutil.copyfileobj(source, target)


def unpacked(path: Path) -> Path:
    """Return the folder with the files of an archive, in neoplug's cache; each is as it was packed.

    Raises:
        UsageError: it is no archive that `write_archive` wrote.
    """
    folder = cache_root() / "originals" / sha256_of(path)
    with lock(folder):
        if not intact(folder, "it is unpacked again"):
            try:
                with folder_atomically(folder) as draft:
                    _unpack(path, draft)
            except (BadZipFile, NotImplementedError, OSError, EOFError, ValueError, RuntimeError) as error:
                raise _refused(path, str(error) or type(error).__name__) from error
    return folder


def _unpack(path: Path, folder: Path) -> None:
    """Write the files of an archive into an empty folder. Raises ValueError, or an error of zipfile."""
    _validate_end(path)
    with ZipFile(path) as archive:
        entries = archive.infolist()
        for entry in entries:
            mode = entry.external_attr >> 16
            if entry.is_dir() or (stat.S_IFMT(mode) and not stat.S_ISREG(mode)):
                raise ValueError(f"{entry.filename!r} is no file")
            if entry.compress_type != ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
                raise ValueError(f"{entry.filename!r} is compressed or encrypted, which no archive of neoplug is")
        if why := _objection([entry.filename for entry in entries]):
            raise ValueError(why)
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("its files share bytes")
        for entry in entries:
            target = folder / entry.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as source, target.open("xb") as file:
                shutil.copyfileobj(source, file)
    names = {entry.filename for entry in entries}
    if missing := sorted({RECORD, *NEEDED} - names):
        raise ValueError(f"it has no {missing[0]}")
    if found := damage(folder):
        raise ValueError(found)
    if unknown := sorted(names - {RECORD} - recorded(folder).keys()):
        raise ValueError(f"{unknown[0]!r} is not in its {RECORD}")


def _validate_end(path: Path) -> None:
    """Refuse a file whose list of files would not fit into memory, before it is read. Raises ValueError."""
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - 42))
        end = file.read()
    if why := _too_large(size):
        raise ValueError(why)
    if end[-22:-18] != _END or end[-42:-38] == _END_OF_LARGE:
        raise ValueError("it does not end as an archive of neoplug")
    if int.from_bytes(end[-10:-6], "little") > LARGEST_DIRECTORY:
        raise ValueError(f"it lists more than {MOST_FILES:,} files")


def _too_large(size: int) -> str:
    return f"it has {size:,} bytes, and {MOST_BYTES:,} are the most" if size > MOST_BYTES else ""


def _objection(names: list[str]) -> str:
    """Return why an archive may not have these names; an empty text where it may."""
    if len(names) > MOST_FILES:
        return f"it has {len(names):,} files, and {MOST_FILES:,} are the most"
    for name in names:
        if not all(map(_PART.fullmatch, name.split("/"))) or name.count("/") > 20:
            return f"{name!r} is no name that a file in an archive may have"
    folded = Counter(name.casefold() for name in names)
    folders = {str(above) for name in folded for above in PurePosixPath(name).parents}
    twice = [name for name, count in folded.items() if count > 1 or name in folders]
    return f"{twice[0]!r} names two files, or a file and a folder" if twice else ""


def _refused(path: Path, why: str) -> UsageError:
    return UsageError(f"{path} is no archive of a run\nwhy: {why}\nfix: name a file that `neoplug pack` wrote")
