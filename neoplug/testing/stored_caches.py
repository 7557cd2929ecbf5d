"""Conformance tests of plugins that give the folder of a cache that was built elsewhere.

from neoplug.testing import check_stored_cache

def test_mine(tmp_path):
    check_stored_cache(Mine(...))
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from neoplug.runs.cache_folder import open_folder
from neoplug.teachers.cache_files import HELD_OUT, TRAIN, Shards
from neoplug.testing.hooks import answer
from neoplug.testing.loss_examples import hook
from neoplug.testing.search import Broken, Kit, as_broken, properties_of


def check_stored_cache(stored: Any) -> None:
    """Test every property of plugins that implement `cache_folder`.

    Raises AssertionError for a property that does not hold.
    """
    STORED_CACHE.hold(stored, 0)


class StoredCacheProperties:
    """The properties of such plugins: each method without underscore, which raises Broken where it does not hold."""

    def whole(self, stored: Any) -> None:
        """It gives a folder with a whole cache, of a kind that is installed."""
        folder = _folder(stored)
        with as_broken():
            header, _ = open_folder(folder, ())
        documents = 0
        for part in (TRAIN, HELD_OUT):
            shards = Shards(folder / part, header.sha256)
            for error in (*shards.damaged, *shards.validate()):
                raise Broken(f"{part}/{error.file.name} {error.what}")
            documents += shards.documents
        if not documents:
            raise Broken(f"{folder} has no document")

    def repeated(self, stored: Any) -> None:
        """It gives the same folder again, and so does another instance with the same options."""
        first = _folder(stored)
        for whose, plugin in (("asked again", stored), ("another instance", replace(stored))):
            if (other := _folder(plugin)) != first:
                raise Broken(f"{whose}, it gives {other}, and not {first}: a resumed run reads another teacher")

    def untouched(self, stored: Any) -> None:
        """Asked again, it leaves the files of the folder as they are."""
        folder = _folder(stored)
        before = _files(folder)
        _folder(stored)
        after = _files(folder)
        if changed := sorted(file for file in before.keys() | after.keys() if before.get(file) != after.get(file)):
            raise Broken(f"it changes {changed[0].relative_to(folder)}: a run that is under way reads it")


STORED_CACHE = Kit("stored cache", {}, once=properties_of(StoredCacheProperties()))


def _folder(stored: Any) -> Path:
    """Return the folder, as a run asks for it. Raises TypeError for a plugin without `cache_folder`."""
    if hook(stored, "cache_folder") is None:
        raise TypeError(f"{type(stored).__name__} has no `cache_folder`")
    with as_broken():
        folder: Path = answer(stored, "cache_folder")
    return folder


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return file -> (bytes, time of its last change) of all files in a folder."""
    found = ((file, file.stat()) for file in folder.rglob("*") if file.is_file())
    return {file: (state.st_size, state.st_mtime_ns) for file, state in found}
