"""The teachers' caches on this machine: listed, verified, removed; and copied into a folder for another machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neoplug.data.encode.clock import today
from neoplug.distributed.world import World
from neoplug.errors import DamageError, UsageError, did_you_mean
from neoplug.files import folder_atomically, lock, read_json
from neoplug.files.contents import RECORD, damage, recorded
from neoplug.runs.cache_folder import TeacherCache, teachers_folder
from neoplug.runs.directory import validate_creatable
from neoplug.runs.inputs import resolve_inputs
from neoplug.runs.preflight import validate_devices
from neoplug.runs.process import isolated
from neoplug.runs.signals import stopping
from neoplug.runs.teacher_build import CacheBuilder
from neoplug.runs.teacher_documents import batches_by_part, look_up, rows_read
from neoplug.runs.teacher_estimate import CacheEstimate, estimate
from neoplug.teachers.cache_files import FIX, HELD_OUT, PROBES, SOURCE, TRAIN, Header, Shards

if TYPE_CHECKING:
    from neoplug.recipe import ResolvedRecipe
    from neoplug.runs.inputs import RunInputs
    from neoplug.runs.progress import Progress


@dataclass(frozen=True)
class CacheFacts:
    """What is in a cache.

    key        name of its folder
    source     the teacher, as the recipe that began it names it; empty where this is damaged
    kind       name and options of the kind of cache, as in a recipe
    documents  of training, and held-out
    bytes      of all its files
    """

    key: str
    source: str
    kind: dict[str, Any]
    documents: tuple[int, int]
    bytes: int


def prepare_cache(
    checked: ResolvedRecipe, output: Path | None, progress: Progress, show: Callable[[CacheEstimate], None]
) -> CacheFacts:
    """Complete the cache of a recipe, and write it to the folder `output`, if given; return what it has then.

    show  called with the estimate before anything is computed; not called where nothing is missing

    Raises:
        UsageError: the recipe has no `teacher.cache` that can be built, or `output` exists.
    """
    validate_buildable(checked)
    if output is not None:
        validate_free(output)
    with isolated(), stopping(), checked.marking():
        validate_devices(checked.recipe)
        world = World(checked.recipe.student.device)
        inputs = resolve_inputs(checked, progress, world.broadcast(today()))
        rows = rows_read(checked, inputs, world.size)
        builder = CacheBuilder(checked, inputs, world, progress, rows)

        def before(header: Header, missing: Any) -> None:
            if missing[TRAIN].absent:
                show(estimate(builder, header, missing))

        builder.before = before
        cache = builder.complete()
        if output is not None and world.is_main:
            progress.phase(f"writing {output}")
            _write_copy(checked, inputs, builder, cache, output)
        world.wait()
        world.end()
    return facts_of(output or cache.folder)


def validate_buildable(checked: ResolvedRecipe) -> None:
    """Refuse a recipe without a kind of cache that is built."""
    if checked.plugins.implements("encode_teacher"):
        return
    is_stored = checked.plugins.implements("cache_folder")
    what = "its cache was built already, in a folder" if is_stored else "it has no `teacher.cache`"
    raise UsageError(
        f"the recipe {checked.name} has no cache to build: {what}\n"
        "why: the kind of cache says what is stored of the teacher\n"
        "fix: name a kind, as in `neoplug cache RECIPE 'teacher.cache={KIND: {}}'`; `neoplug plugins` lists the kinds"
    )


def validate_free(output: Path) -> None:
    """Refuse a folder that exists, unless it is empty, and one that cannot be created."""
    validate_creatable(output)
    if output.is_symlink() or (output.exists() and not (output.is_dir() and not any(output.iterdir()))):
        raise UsageError(f"{output} exists already\nwhy: nothing is overwritten\nfix: choose another --output")


def _write_copy(
    checked: ResolvedRecipe, inputs: RunInputs, builder: CacheBuilder, cache: TeacherCache, output: Path
) -> None:
    """Write what the recipe's run reads of a cache to a new folder; shards are linked where the disk allows it."""
    wanted = [cache.folder / RECORD, *(cache.folder / name for name in recorded(cache.folder))]
    wanted += [file for file in (cache.folder / PROBES).rglob("*") if file.is_file()]
    linked = set()
    for part, batches in batches_by_part(checked, inputs, builder.rows).items():
        shards = cache.shards(part)
        linked |= {shards.file(number) for number in look_up(shards, batches).shards}
    if output.is_dir():
        output.rmdir()
    with folder_atomically(output) as draft:
        for file in [*wanted, *sorted(linked)]:
            copy = draft / file.relative_to(cache.folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if file not in linked or not _link(file, copy):
                shutil.copyfile(file, copy)


def _link(file: Path, copy: Path) -> bool:
    """Make a hard link; return whether the disk allows it. A shard is never changed, so both names stay right."""
    try:
        os.link(file, copy)
    except OSError:
        return False
    return True


def list_caches() -> list[CacheFacts]:
    """Return the caches in neoplug's own folder, by key."""
    return [facts_of(folder) for folder in _folders()]


def facts_of(folder: Path) -> CacheFacts:
    """Return what is in a cache; without a header that can be read, its kind is empty and its shards count as none."""
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    try:
        header = Header.read(folder)
        source = str(read_json(folder / SOURCE, FIX)["model"])
    except DamageError:
        return CacheFacts(folder.name, "", {}, (0, 0), size)
    documents = tuple(Shards(folder / part, header.sha256).documents for part in (TRAIN, HELD_OUT))
    kind = {header.kind["name"]: header.kind["options"]}
    return CacheFacts(folder.name, source, kind, (documents[0], documents[1]), size)


def verify_caches(key: str | None) -> Iterator[tuple[str, list[str]]]:
    """Yield the key of each cache, or of the one that begins with `key`, and what is damaged in it, after reading it.

    Raises:
        UsageError: no cache, or more than one, begins with `key`.
    """
    for folder in [find_cache(key)] if key else _folders():
        yield folder.name, _damage_of(folder)


def _damage_of(folder: Path) -> list[str]:
    if found := damage(folder):
        return [found]
    try:
        header = Header.read(folder)
    except DamageError as error:
        return [f"{error.file.name} {error.what}"]
    lines = []
    for part in (TRAIN, HELD_OUT):
        shards = Shards(folder / part, header.sha256)
        found_here = [*shards.damaged, *shards.validate()]
        lines += [f"{part}/{error.file.name} {error.what}" for error in found_here]
    probes = [found for results in sorted((folder / PROBES).glob("*")) if (found := damage(results))]
    return [*lines, *(f"{PROBES}/{found}" for found in probes)]


def remove_cache(key: str) -> CacheFacts:
    """Remove the cache that begins with `key`, once no process builds it; return what it had.

    Raises:
        UsageError: no cache, or more than one, begins with `key`.
    """
    folder = find_cache(key)
    with lock(folder):
        facts = facts_of(folder)
        shutil.rmtree(folder)
    return facts


def find_cache(key: str) -> Path:
    """Return the folder of the only cache whose key begins with `key`."""
    folders = [folder for folder in _folders() if folder.name.startswith(key)]
    if len(folders) == 1:
        return folders[0]
    keys = [folder.name for folder in _folders()]
    what = f"several caches begin with `{key}`" if folders else f"no cache has the key `{key}`{did_you_mean(key, keys)}"
    raise UsageError(f"{what}\nfix: `neoplug cache --list` shows the keys; their first characters are enough")


def _folders() -> list[Path]:
    root = teachers_folder()
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
