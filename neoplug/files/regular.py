"""Reading of files that a recipe names: only regular files, and never more than a given number of bytes."""

import errno
import stat
from pathlib import Path


def read_regular(path: Path, most: int) -> bytes:
    """Return the first `most` bytes of a regular file.

    Raises OSError where it cannot be read, or is a folder, pipe, device or socket: opening these may block or act.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    with path.open("rb") as file:
        return file.read(most)
