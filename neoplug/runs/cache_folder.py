"""A teacher's cache as a folder: opened as the teacher of a run, and checked where it was built elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import nn

from neoplug.errors import DamageError, Problem, RecipeError
from neoplug.errors import Path as Key
from neoplug.files import cache_root, read_json
from neoplug.files.contents import damage
from neoplug.hookspecs import Reads
from neoplug.models.head import Head
from neoplug.models.reference import ResolvedModel
from neoplug.recipe.cache_checks import SECTION, unserved
from neoplug.recipe.plugin_checks import NamedPlugin
from neoplug.registry import Entry, Plugins, answered, build, find, path_of
from neoplug.registry.teacher_reads import serves
from neoplug.teachers.cache_files import FIX, HEAD, HEADER, HELD_OUT, SOURCE, TEACHER, TRAIN, Header, Shards
from neoplug.teachers.cached import CachedTeacher

if TYPE_CHECKING:
    from neoplug.models.vocabulary import Vocabulary
    from neoplug.recipe import ResolvedRecipe


@dataclass(frozen=True, eq=False)
class TeacherCache:
    """A cache that has a record of every document that a run reads.

    plugins  those of which one encodes and decodes its records
    probes   results of the recipe's probes for the teacher, where they are stored
    """

    folder: Path
    header: Header
    plugins: Plugins
    probes: dict[str, Any] = field(default_factory=dict)

    def shards(self, name: str) -> Shards:
        """Open the shards of TRAIN or HELD_OUT."""
        return Shards(self.folder / name, self.header.sha256)

    def teacher(self, vocabulary: Vocabulary, device: torch.device) -> CachedTeacher:
        """Return the teacher, with its head on `device`."""
        parts = load_file(self.folder / HEAD)
        rows, hidden_size = parts["weight"].shape
        linear = nn.Linear(hidden_size, rows, bias="bias" in parts, device="meta").requires_grad_(False)
        linear.load_state_dict(parts, assign=True)
        linear.to(device).requires_grad_(False)
        (decode,) = self.plugins.functions("decode_teacher").values()
        return CachedTeacher(
            header=self.header,
            train=self.shards(TRAIN),
            held_out=self.shards(HELD_OUT),
            decode=decode,
            head=Head(linear, vocabulary, self.header.multiplier, self.header.cap),
            serves=self.serves,
            probes=self.probes,
        )

    @property
    def lock(self) -> dict[str, str]:
        """What identifies the records for the lock of a run; other documents do not change it."""
        return {"key": self.header.key, "sha256": self.header.sha256}

    @property
    def has_entries(self) -> bool:
        """Whether losses read entries of the teacher's distributions, and no logits."""
        return self.serves != "full"

    @property
    def serves(self) -> Reads:
        """The most that a loss may read of it."""
        (kind,) = self.plugins.section(SECTION).values()
        return serves(kind)


def teachers_folder() -> Path:
    """Return the folder of all caches."""
    return cache_root() / "teachers"


def stored_teacher(checked: ResolvedRecipe) -> ResolvedModel | None:
    """Return the teacher without weights, from the folder that the recipe's cache names; None where it names none.

    No code in the folder is run, whatever the recipe's `trust_remote_code` is.

    Raises:
        RecipeError: the folder is no complete cache.
    """
    folder = checked.plugins.one("cache_folder")
    if folder is None:
        return None
    stored_kind(checked, folder)
    return ResolvedModel(str(folder / TEACHER), None, read_json(folder / SOURCE, FIX)["model"], "local")


def stored_kind(checked: ResolvedRecipe, folder: Path) -> tuple[Header, Plugins]:
    """Return the header of the cache in the folder that the recipe names, and the plugin that encoded it.

    Raises:
        RecipeError: the folder is no complete cache, its kind is not installed, or a loss of the recipe reads more than
            it stores.
    """
    ((section, stored),) = checked.plugins.named("cache_folder")
    header, entry = open_folder(folder, path_of(section, stored))
    kind: Any = build(entry.load(), header.kind["options"])
    problems = [
        problem
        for (section, name), other in checked.entries.items()
        if section in ("loss", "token_weights")
        for plugin in [checked.plugins.section(section)[name]]
        for problem in unserved(
            NamedPlugin(section, name, path_of(section, name), other, type(plugin), plugin), kind, entry
        )
    ]
    if problems:
        raise RecipeError(problems)
    return header, Plugins({SECTION: {header.kind["name"]: kind}})


def open_folder(folder: Path, path: Key) -> tuple[Header, Entry]:
    """Return the header of a folder that `neoplug cache --output` wrote, and the entry of its kind.

    Shards are not read. Files and modules that the folder names do not run.

    path  of the plugin in the recipe that names the folder

    Raises:
        RecipeError: the folder is no complete cache, or its kind is not installed.
    """
    if not (folder / HEADER).is_file():
        fix = "name a folder that `neoplug cache RECIPE --output DIR` wrote"
        raise RecipeError([Problem(f"{folder} holds no teacher's cache", "it has no header.json", fix, path)])
    if found := damage(folder):
        raise RecipeError([damage_problem(path, f"{folder} is damaged: {found}")])
    try:
        header = Header.read(folder)
    except DamageError as error:
        raise RecipeError([damage_problem(path, f"{error.file} {error.what}")]) from error
    name = header.kind["name"]
    entry = find(name, folder)
    if not entry.is_installed or "decode_teacher" not in answered(entry.load()):
        what = f"the cache in {folder} is of the kind `{name}`, which no installed package has"
        why, fix = "a folder of data does not say which code runs", "install its package, or build another kind"
        raise RecipeError([Problem(what, why, fix, path)])
    return header, entry


def damage_problem(path: Key, what: str) -> Problem:
    """Return the problem of a folder with a damaged file; `path` names it in the recipe."""
    why = "records of a damaged file would train the student on something else"
    return Problem(what, why, "copy it again from where it was built, or build it again", path)
