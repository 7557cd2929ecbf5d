"""Resuming a run: what has to be as it was, what may have changed since, and how the rows of a step are dealt now."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neoplug.errors import Path as Key
from neoplug.errors import UsageError
from neoplug.recipe import ResolvedRecipe, Train
from neoplug.runs.directory import REQUIRED, SAVED, RunDir, validate_output_path
from neoplug.runs.global_batch import GlobalBatch
from neoplug.runs.lock import difference, found_contents, pinned, with_newer_keys
from neoplug.runs.micro_batch import AUTO, with_chosen
from neoplug.runs.result import RunState
from neoplug.training import checkpoint

logger = logging.getLogger("neoplug")

# Keys that a resumed run may have changed: how a step's rows are dealt and weights divided, and how long processes wait
# for each other.
MAY_CHANGE = (
    *("train.per_device_train_batch_size", "train.gradient_accumulation_steps"),
    *("train.shard", "train.ddp_timeout"),
)


def run_to_resume(output: Path, checked: ResolvedRecipe, resume: bool) -> RunDir | None:
    """Return the run in the directory `output`; None where the run is a new one.

    A run that failed before its first step is begun anew, unless `resume` is True.

    Raises:
        UsageError: there is a run and `resume` is False, or its recipe differs from `checked`; or `output` cannot be
            created.
    """
    if not (resume and RunDir.is_run(output)):
        validate_output_path(output)
        return None
    directory = RunDir.open(output)
    directory.verify(*REQUIRED, *(SAVED if directory.is_finished and directory.result else ()))
    now = checked.resolved()
    as_given, as_pinned = (
        [line for line in difference(with_newer_keys(old, now), now) if line.partition(":")[0] not in MAY_CHANGE]
        for old in (directory.lock["recipe"], directory.resolved)
    )
    if as_given and as_pinned:
        lines = "\n".join(f"  {line}" for line in as_given)
        raise UsageError(
            f"the recipe changed since {output} was started:\n{lines}\n"
            "why: a resumed run continues what was begun, bit for bit\nfix: undo the change, or start a new run"
        )
    return directory


def begun_with(directory: RunDir) -> dict[Key, Any]:
    """Return what a run was started with and its recipe may lack or have changed since, by its key in a recipe."""
    begun = directory.global_batch
    sizes = begun.model_dump(exclude={"ranks"}) if begun else {}
    return {**pinned(directory.lock), **{("train", name): size for name, size in sizes.items()}}


def sized_as_begun(directory: RunDir, checked: ResolvedRecipe) -> ResolvedRecipe:
    """Return the recipe with the sizes that were chosen for `auto` when the run was started; unchanged without it."""
    if checked.recipe.train.per_device_train_batch_size != AUTO:
        return checked
    return with_chosen(checked, directory.lock.get("chosen", {}))


def validate_same_lock(directory: RunDir, lock: Mapping[str, Any]) -> None:
    """Refuse to resume if models or data have changed; warn of changed plugin files and versions.

    lock  as a run that began now would have it

    Raises:
        UsageError: the files of a model or the tokenised data differ from those of the earlier process.
    """
    before, now = map(found_contents, (directory.lock, lock))
    must_match = ("models", "data")
    if changed := difference(*({name: record[name] for name in must_match} for record in (before, now))):
        lines = "\n".join(f"  {line}" for line in changed)
        raise UsageError(
            f"models or data changed since {directory.path} was started:\n{lines}\n"
            "why: a resumed run continues what was begun, bit for bit\nfix: bring them back, or start a new run"
        )
    for line in difference(before, now):
        logger.warning("resuming although this changed since the run was started: %s", line)


def validate_global_batch(directory: RunDir, checked: ResolvedRecipe, ranks: int) -> None:
    """Refuse to resume a run with other numbers of rows in its steps, before a model is loaded.

    Raises:
        UsageError: processes x micro-batches of the recipe are not as many rows as when the run was started.
    """
    if begun := directory.global_batch:
        GlobalBatch.of(checked.recipe.train, ranks).validate_same_rows(begun, directory.path)


def deal_rows(state: RunState, train: Train, ranks: int, directory: RunDir, earlier: Path | None) -> None:
    """Record in `state` how the rows of a step are dealt from here on, and warn where that is new.

    earlier  the checkpoint that the run goes on from; None where there is none
    """
    now = GlobalBatch.of(train, ranks)
    before = state.deal(now, directory.global_batch or now)
    if before is None:
        return
    logger.warning(
        "from step %d on, the same rows of a step are dealt to %s; before: %s (processes x micro-batches). Dropout "
        "draws other numbers than it would have, and sums differ in their last digits",
        *(state.step, now, before),
    )
    if earlier and now.ranks != before.ranks and (names := checkpoint.differing_states(earlier)):
        logger.warning(
            "%s had another state on each process: each goes on with that of its rank modulo %d",
            *(", ".join(f"`{name}`" for name in names), before.ranks),
        )
