"""File operations: atomic writes of files and folders, content hashes, locks, and the location of neoplug's cache."""

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO

from neoplug.errors import DiskError

if sys.platform != "win32":
    import fcntl

PARTIAL = ".partial"  # suffix of incomplete files and folders, which a killed process leaves
ROOM = len("..12345678") + len(PARTIAL)  # of a partial's name, in addition to that of the file or folder
BELOW = 200  # bytes of the paths of files in a folder of neoplug
DAY = 86_400  # seconds
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


def config_root() -> Path:
    """Return the folder of neoplug's settings, which may not exist yet: in $XDG_CONFIG_HOME or the usual place."""
    if home := os.environ.get("XDG_CONFIG_HOME"):
        return Path(home).expanduser().absolute() / "neoplug"
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA", "~/AppData/Roaming")).expanduser() / "neoplug"
    return Path("~/Library/Application Support" if sys.platform == "darwin" else "~/.config").expanduser() / "neoplug"


def write_atomically(path: Path, content: str | bytes, *, mode: int | None = None) -> None:
    """Write `content` (text as UTF-8) so that `path` holds either its old content or all of the new.

    mode  of the file; None: the default

    Raises DiskError where it cannot be written.
    """
    with file_atomically(path, mode=mode) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def file_atomically(path: Path, *, mode: int | None = None) -> Iterator[BinaryIO]:
    """Yield a new temporary file that replaces `path` at the end of the block, or is removed after an error.

    mode  of the file; None: the default

    Raises DiskError where it cannot be written.
    """
    with _partial(path, Path.touch) as partial:
        if mode is not None:
            partial.chmod(mode)
        with disk_errors(path), partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    _sync(path.parent)


@contextmanager
def folder_atomically(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder that is renamed to `path` at the end of the block, or removed after an error.

    Raises FileExistsError where `path` exists, since a folder is never overwritten; DiskError where it cannot be
    written.
    """
    _validate_absent(path)
    with _partial(path, Path.mkdir) as partial:
        with disk_errors(path):
            yield partial
            _finish_tree(partial)
        _validate_absent(path)
        partial.rename(path)
    _sync(path.parent)


@contextmanager
def discarded_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder next to `path`, named after it, and remove it at the end of the block."""
    with _partial(path, Path.mkdir) as partial, disk_errors(path):
        yield partial


def too_long(path: Path) -> str:
    """Return why the file system of `path` has no room for its names, those of its files, and of their partials.

    It is empty where it has room, and on Windows, where it is not known.
    """
    if sys.platform == "win32":
        return ""
    path = path.absolute()
    folder = next(above for above in path.parents if os.path.isdir(above))  # noqa: PTH112  names of any length
    longest_name, longest_path = (os.pathconf(folder, limit) for limit in ("PC_NAME_MAX", "PC_PATH_MAX"))
    name = max(len(os.fsencode(part)) for part in path.parts)
    whole = len(os.fsencode(path))
    if name > longest_name - ROOM:
        return f"a name in it has {name:,} bytes, and {folder} takes at most {longest_name - ROOM:,}"
    if whole > longest_path - BELOW:
        return f"its path has {whole:,} bytes, and the system takes at most {longest_path - BELOW:,}"
    return ""


@contextmanager
def _partial(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """Yield a new hidden file or folder next to `path`, removed at the end of the block unless it was renamed.

    This process holds a lock on it: it is not abandoned. Those of `path` that are abandoned are removed first.
    """
    with _folder_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent, f".{glob.escape(path.name)}.*{PARTIAL}")
        partial, handle = _locked_partial(path, make)
    try:
        yield partial
    finally:
        remove(partial)
        if handle is not None:
            os.close(handle)


def _locked_partial(path: Path, make: Callable[[Path], None]) -> tuple[Path, int | None]:
    """Create a partial of `path`; return it with the handle that holds its lock (None on Windows)."""
    while True:
        partial = path.with_name(f".{path.name}.{token_hex(4)}{PARTIAL}")
        make(partial)
        if sys.platform == "win32":
            return partial, None
        with suppress(FileNotFoundError):  # removed by another process before the lock was held
            handle = os.open(partial, os.O_RDONLY)
            with suppress(OSError):  # a file system without locks: nothing is removed there
                fcntl.flock(handle, fcntl.LOCK_SH)
            if partial.exists():
                return partial, handle
            os.close(handle)


def remove_abandoned(folder: Path, pattern: str = f"**/.*{PARTIAL}") -> None:
    """Remove the partial files and folders in `folder` whose process was killed; those of living ones are locked.

    On Windows, which cannot lock a folder, they are removed when they are a day old.
    """
    for partial in list(folder.glob(pattern)):
        if sys.platform == "win32":
            if time.time() - partial.stat().st_mtime > DAY:
                remove(partial)
            continue
        with suppress(OSError):  # locked, or removed by another process
            handle = os.open(partial, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(partial)
            finally:
                os.close(handle)


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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


def sha256_of(path: Path) -> str:
    """Return the hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(value: Any) -> str:
    """Return the sha256 of `value` as canonical JSON, independent of the order of keys. Raises ValueError for NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def lock(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock file PATH.lock, after waiting for other processes; the system releases it when a process dies.

    on_wait  called once where another process holds it
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    guard = FileLock(path.with_name(path.name + ".lock"))
    try:
        guard.acquire(timeout=0)
    except Timeout:
        on_wait()
        guard.acquire()
    try:
        yield
    finally:
        guard.release()


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


def _finish_tree(folder: Path) -> None:
    """Flush a folder to disk; its files get the mode that the folder was created with: some libraries write 0600."""
    mode = folder.stat().st_mode & 0o666
    for parent, _, names in os.walk(folder):
        for file in (Path(parent, name) for name in names):
            if not file.is_symlink():
                file.chmod(mode)
                _sync(file)
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
