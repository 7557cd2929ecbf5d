"""The run that is reproduced, from its directory, its lock alone, or an archive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neoplug import recipe as recipes
from neoplug.errors import UsageError
from neoplug.files import cache_root, content_hash, folder_atomically, lock
from neoplug.recipe import ResolvedRecipe
from neoplug.reproduction.archive import NEEDED, unpacked
from neoplug.reproduction.differences import Difference, find_differences
from neoplug.runs.directory import RunDir, as_json, as_yaml
from neoplug.runs.global_batch import Dealt
from neoplug.runs.lock import pinned
from neoplug.runs.measurements import Record, measurements_of
from neoplug.runs.run_files import read_lock


@dataclass(frozen=True)
class Original:
    """A finished run, or the lock of one.

    name    of a replay's directory
    recipe  the file that is replayed
    lock    the content of lock.json
    record  what a replay is compared with; None where there is only the lock
    dealt_anew  how the rows of a step were dealt after each resume that changed it
    """

    name: str
    recipe: Path
    lock: Mapping[str, Any]
    record: Record | None = None
    dealt_anew: Sequence[Dealt] = ()

    def differences(self, here: Mapping[str, Any]) -> list[Difference]:
        """Return what differs between the run and the lock `here`, of a replay or of this machine."""
        resumes = [
            Difference("ranks", f"dealt_anew, from step {dealt.step} on", str(dealt), None) for dealt in self.dealt_anew
        ]
        return find_differences(self.lock, here) + resumes

    def load(self, overrides: Sequence[str], trust: Sequence[str], changes: Mapping[str, Any]) -> ResolvedRecipe:
        """Return the recipe with all that the run used and its recipe need not name. Raises RecipeError."""
        checked = recipes.load(self.recipe, overrides, changes, trust=trust)
        return checked if self.record else checked.pinned(pinned(self.lock))


def open_original(path: Path) -> Original:
    """Open the directory of a run, a lock (*.json), or an archive of `neoplug pack`.

    Raises:
        UsageError: it is none of these, the run is not finished, or an older neoplug wrote its lock.
        DamageError: a file is damaged.
    """
    if path.is_dir():
        return _of_run(RunDir.open(path), path.absolute().name)
    if not path.is_file():
        raise UsageError(f"{path} is no file or folder\nfix: name a run's directory, its lock.json, or an archive")
    if path.suffix != ".json":
        return _of_run(RunDir.open(unpacked(path)), path.stem)
    if (path.parent / "recipe.yaml").is_file():
        return _of_run(RunDir.open(path.parent), path.absolute().parent.name)
    return _of_lock(read_lock(path), path.stem)


def _of_run(run: RunDir, name: str) -> Original:
    run.verify(*NEEDED)
    result = run.result
    if result is None or result.status != "completed":
        raise UsageError(
            f"{run.path} is not finished, so there is nothing to compare with\n"
            "fix: continue it with `neoplug run RECIPE --output RUN --resume`"
        )
    record = Record(measurements_of(run), measurements_of)
    return Original(name, run.path / "recipe.yaml", _complete(run.lock), record, result.dealt_anew)


def _of_lock(content: Mapping[str, Any], name: str) -> Original:
    """Return what a lock says; its recipe is written to neoplug's cache, from where a file can be loaded."""
    folder = cache_root() / "originals" / content_hash(_complete(content))
    with lock(folder):
        if not folder.exists():
            with folder_atomically(folder) as draft:
                (draft / "recipe.yaml").write_text(as_yaml(content["recipe"]), encoding="utf-8")
                (draft / "lock.json").write_text(as_json(content), encoding="utf-8")
    return Original(name, folder / "recipe.yaml", content)


def _complete(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the content of a lock. Raises UsageError where an older neoplug wrote it."""
    if content.keys() >= {"recipe", "computation"}:
        return content
    raise UsageError(
        "the lock does not say how its run was computed: an older neoplug wrote it\n"
        "why: a replay that differs could not be judged\n"
        "fix: run its recipe.yaml with `neoplug run`, and reproduce that run"
    )
