"""Reproduction of a run: what differs here from its lock, its replay, and the verdict."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neoplug.errors import Interrupted, NeoplugError, UsageError
from neoplug.reproduction.comparison import Comparison, Judgement, compare, judge
from neoplug.reproduction.differences import Difference, tolerance
from neoplug.reproduction.original import Original, open_original
from neoplug.runs.directory import RunDir, chosen_output
from neoplug.runs.execute import execute, lock_here
from neoplug.runs.measurements import Record, measurements_of

if TYPE_CHECKING:
    from neoplug.recipe import ResolvedRecipe
    from neoplug.runs.progress import Progress

REPRODUCED, NOT_REPRODUCED, UNTRIED = 0, 1, 2  # exit codes


@dataclass(frozen=True)
class Reproduction:
    """What is known of a run, of the differences here, and of its replay.

    source       the run, lock or archive, as the user named it
    lock         of the run
    differences  between the lock and this machine, or the replay
    run          the directory of the replay; None where only the lock was compared
    comparison   of replay and run; None without a replay, or where there is only a lock
    judgements   of the replay by the targets of the recipe's reference
    """

    source: str
    lock: Mapping[str, Any]
    differences: list[Difference]
    run: Path | None = None
    comparison: Comparison | None = None
    judgements: Sequence[Judgement] = ()

    @property
    def tolerance(self) -> float | None:
        """The tolerance of the differences together; None where something else is trained."""
        return tolerance(self.differences, self.lock)

    @property
    def is_equal(self) -> bool:
        """Whether all steps and the evaluation are bit-equal."""
        return self.comparison is not None and self.comparison.first is None

    @property
    def exit_code(self) -> int:
        """0: equal, or within what is stated; 1: not."""
        if self.is_equal:
            return REPRODUCED
        if self.tolerance is None:
            return NOT_REPRODUCED
        if self.run is None:
            return REPRODUCED
        if self.judgements:
            return REPRODUCED if all(judgement.is_inside for judgement in self.judgements) else NOT_REPRODUCED
        is_within = self.comparison is not None and self.comparison.is_within(self.tolerance)
        return REPRODUCED if is_within else NOT_REPRODUCED

    @property
    def verdict(self) -> str:
        """The verdict in a sentence."""
        if self.is_equal:
            return "Reproduced: each recorded step and the evaluation after training are bit-equal."
        if self.tolerance is None:
            kinds = ", ".join(dict.fromkeys(one.kind for one in self.differences if one.changes_training))
            return f"{'Not the same run' if self.run is None else 'Not reproduced'}: another {kinds} was read."
        if self.run is None:
            what = f"equal within {self.tolerance:g}" if self.tolerance else "bit-equal"
            return f"Nothing was replayed; a replay here has to be {what}."
        if self.judgements:
            side = "Reproduced: inside" if self.exit_code == REPRODUCED else "Not reproduced: not inside"
            return f"{side} the distribution that the recipe states."
        if self.exit_code == REPRODUCED:
            return f"Reproduced within {self.tolerance:g}, the tolerance of what differs here."
        if not self.tolerance:
            return "Not reproduced: nothing that may change a result differs here, so the replay has to be bit-equal."
        return f"Not reproduced: it deviates by more than {self.tolerance:g}, the tolerance of what differs here."


def reproduce(
    path: Path,
    *,
    progress: Progress,
    show: Callable[[list[Difference]], None],
    record: Record | None = None,
    overrides: Sequence[str] = (),
    output: Path | None = None,
    dry_run: bool = False,
    trust: Sequence[str] = (),
) -> Reproduction:
    """Compare a run with this machine, and replay it.

    path       a run's directory, its lock, or an archive
    show       called with the differences before anything is trained
    record     what a replay is compared with; by default what the directory or the archive has
    overrides  changes to the recipe, such as where a model lies on this machine
    output     where the replay is written
    dry_run    replay nothing

    Raises:
        NeoplugError: it cannot be tried, with exit code 2; or the replay failed.
    """
    with _untried():
        original = open_original(path)
        record = record or original.record
        given, replayed = _recipes(original, overrides, trust)
        here = lock_here(replayed, progress) | {"recipe": given.resolved()}
        differences = original.differences(here)
        reference = given.recipe.reference
        if not dry_run and record is None and not (reference and reference.targets):
            raise UsageError(
                f"{path} has no metrics and no reference, so there is nothing to compare a replay with\n"
                "fix: name the run's directory or its archive; `--dry-run` compares the lock alone"
            )
    show(differences)
    if dry_run:
        return Reproduction(str(path), original.lock, differences)
    folder = chosen_output(output, None, f"{original.name}-reproduced", resume=False)
    execute(replayed, folder, False, progress)
    run = RunDir.open(folder)
    return Reproduction(
        str(path),
        original.lock,
        original.differences(run.lock | {"recipe": given.resolved()}),
        folder,
        compare(record.measured, record.measure(run)) if record else None,
        judge(reference, measurements_of(run).after) if reference else [],
    )


def _recipes(
    original: Original, overrides: Sequence[str], trust: Sequence[str]
) -> tuple[ResolvedRecipe, ResolvedRecipe]:
    """Return the recipe, and the one that is replayed: on fewer or more ranks, with the same rows in each step."""
    silent: dict[str, Any] = {"report_to": "none", "trackers": {}, "output_dir": None}
    given = original.load(overrides, trust, silent)
    before, now = original.lock["computation"]["ranks"], int(os.environ.get("WORLD_SIZE", "1"))
    rows = given.recipe.train.gradient_accumulation_steps * before
    if before == now:
        return given, given
    if rows % now:
        raise UsageError(
            f"the run had {before} processes, and here are {now}: a step cannot have the same rows\n"
            f"fix: replay it on a number of processes that divides {rows}"
        )
    return given, original.load(overrides, trust, silent | {"train": {"gradient_accumulation_steps": rows // now}})


@contextmanager
def _untried() -> Iterator[None]:
    """Give every error in the block the exit code of what cannot be tried."""
    try:
        yield
    except Interrupted:
        raise
    except NeoplugError as error:
        error.exit_code = UNTRIED
        raise
