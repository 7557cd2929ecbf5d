"""File operations: atomic writes of files and folders, content hashes, locks, and the location of neoplug's cache."""

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

PARTIAL = ".partial"  # suffix of incomplete files and folders; they remain after a process was killed
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # of a full or read-only disk
PROBE = 16_384  # bytes written to test whether a disk accepts data


def cache_root() -> Path:
    """Return the folder of neoplug's cache, which may not exist yet: $NEOPLUG_HOME, else in the user's cache folder."""
    if home := os.environ.get("NEOPLUG_HOME"):
        return Path(home).expanduser().absolute()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local")).expanduser() / "neoplug"
    if sys.platform == "darwin":
        return Path("~/Library/Caches/neoplug").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "neoplug"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` (text as UTF-8) so that `path` holds either its old content or all of the new.

    Raises DiskError where it cannot be written.
    """
    with _folder_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent)
    partial = Path(name)
    try:
        with disk_errors(path), os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(_default_mode())  # mkstemp sets 0600; results have the default mode
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync(path.parent)


@contextmanager
def folder_atomically(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder that is renamed to `path` at the end of the block, or removed after an error.

    Raises FileExistsError where `path` exists, since a folder is never overwritten; DiskError where it cannot be
    written.
    """
    _validate_absent(path)
    with _folder_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent))
    try:
        with disk_errors(path):
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
def discarded_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder next to `path`, named after it, and remove it at the end of the block."""
    with _folder_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent))
    try:
        with disk_errors(path):
            yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise DiskError in place of any error that a full or read-only disk caused; other errors are raised unchanged."""
    try:
        yield
    except Exception as error:
        if reason := _disk_reason(error) or _write_failure(path.parent):
            raise DiskError(path, reason) from error
        raise


@contextmanager
def _folder_errors(path: Path) -> Iterator[None]:
    """Raise DiskError for `path` in place of any OSError."""
    try:
        yield
    except OSError as error:
        raise DiskError(path, f"no file can be created in {path.parent} ({error.strerror})") from error


def _write_failure(folder: Path) -> str:
    """Write a test file to `folder`; return the reason where its disk is full or read-only, else an empty string."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(PROBE))
    except OSError as error:
        return _disk_reason(error)
    return ""


def _disk_reason(error: Exception) -> str:
    """Return the operating system's message of an error that a full or read-only disk caused, else an empty string."""
    match = re.search(r"\(os error (\d+)\)", str(error))  # the form of Rust's errors, which safetensors raises
    number = error.errno if isinstance(error, OSError) else int(match[1]) if match else None
    return os.strerror(number) if number and number in DISK_ERRORS else ""


def remove_partial(folder: Path) -> None:
    """Remove incomplete files and folders of killed processes below `folder`; no process may be writing there."""
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
    """Return the sha256 of `value` as canonical JSON, independent of the order of keys. Raises ValueError for NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock file PATH.lock, after waiting for other processes; the system releases it when a process dies."""
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(path.name + ".lock")):
        yield


@contextmanager
def exclusive_lock(file: Path) -> Iterator[None]:
    """Hold the lock file `file`, and remove it at the end; the system releases it when a process dies.

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
        with suppress(OSError):  # Windows cannot remove an open file
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
    """Flush a file or folder to disk, so that after a crash a renamed file has its content."""
    if sys.platform == "win32" and path.is_dir():  # Windows cannot open a folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
