"""Files that are whole or absent: atomic writes, content hashes, locks, and where neoplug keeps what it makes once."""

import errno
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from neoplug.errors import DiskError

PARTIAL = ".partial"  # how the name of a half-written sibling ends; after a kill it may stay behind
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # what a disk says that takes no more
PROBE = 16_384  # bytes that a disk with room takes


def cache_root() -> Path:
    """Return $NEOPLUG_HOME, else `neoplug` in the user's cache folder. It need not exist yet."""
    if home := os.environ.get("NEOPLUG_HOME"):
        return Path(home).expanduser().absolute()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local")).expanduser() / "neoplug"
    if sys.platform == "darwin":
        return Path("~/Library/Caches/neoplug").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "neoplug"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` (text as UTF-8) so that `path` holds either the old bytes or all of the new ones.

    Raises DiskError where the disk does not take it.
    """
    with _place_told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent)
    partial = Path(name)
    try:
        with full_disk_told(path), os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(_default_mode())  # mkstemp gives 0600: a result should be as readable as any other file
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync(path.parent)


@contextmanager
def folder_atomically(path: Path) -> Iterator[Path]:
    """Yield an empty sibling folder that becomes `path` when the block ends well, and vanishes when it does not.

    Raises FileExistsError where `path` exists already: a finished folder is never overwritten; DiskError where the
    disk does not take it.
    """
    _validate_absent(path)
    with _place_told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent))
    try:
        with full_disk_told(path):
            yield partial
            _sync_tree(partial)
        partial.chmod(_default_mode() | 0o111 & ~_umask())
        _validate_absent(path)
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync(path.parent)


@contextmanager
def full_disk_told(path: Path) -> Iterator[None]:
    """Raise DiskError where the disk takes no more of `path`, whatever a library makes of that; other errors pass."""
    try:
        yield
    except Exception as error:
        if reason := _reason(error) or _refusal(path.parent):
            raise DiskError(path, reason) from error
        raise


@contextmanager
def _place_told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DiskError(path, f"{path.parent} takes no file ({error.strerror})") from error


def _refusal(folder: Path) -> str:
    """Return why `folder` takes no file at this moment; nothing where it does."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(PROBE))
    except OSError as error:
        return _reason(error)
    return ""


def _reason(error: Exception) -> str:
    told = re.search(r"\(os error (\d+)\)", str(error))  # safetensors says it as Rust does
    number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
    return os.strerror(number) if number and number in REFUSALS else ""


def remove_partial(folder: Path) -> None:
    """Remove what processes that were killed left unfinished anywhere below `folder`; nobody may be writing there."""
    for partial in list(folder.rglob(f".*{PARTIAL}")):
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Return the hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(value: Any) -> str:
    """Return the sha256 of `value` as canonical JSON: the order of maps does not matter. Refuses NaN (ValueError)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock file `path`.lock, waiting for other processes; the operating system frees it when one dies."""
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(path.name + ".lock")):
        yield


@contextmanager
def held(file: Path) -> Iterator[None]:
    """Hold the lock file `file`, and remove it at the end; the operating system frees it when a process dies.

    Raises BlockingIOError at once where another process holds it.
    """
    from filelock import FileLock, Timeout

    guard = FileLock(file)
    try:
        guard.acquire(timeout=0)
    except Timeout as error:
        raise BlockingIOError(f"{file} is held by another process") from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            file.unlink()
        guard.release()


def _validate_absent(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"{path} exists already")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _default_mode() -> int:
    return 0o666 & ~_umask()


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync(Path(parent, name))
        _sync(Path(parent))


def _sync(path: Path) -> None:
    """Flush a file or folder to disk, so that a rename never outlives what it names."""
    if sys.platform == "win32" and path.is_dir():  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
