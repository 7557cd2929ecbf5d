"""Execution of a recipe: start or resume a run in its directory."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from neoplug import recipe as recipes
from neoplug.distributed.world import World
from neoplug.errors import UsageError
from neoplug.recipe import ResolvedRecipe
from neoplug.runs.directory import RunDir, chosen_output, taken, validate_output_path
from neoplug.runs.inputs import RunInputs, prepare_student, resolve_inputs
from neoplug.runs.lock import difference, lock_record
from neoplug.runs.preflight import validate_devices
from neoplug.runs.process import isolated
from neoplug.runs.progress import Progress, Silent
from neoplug.runs.signals import stopping
from neoplug.runs.trainer import Trainer

logger = logging.getLogger("neoplug")


def run(
    recipe: str | Path, *, output: str | Path | None = None, resume: bool = False, progress: Progress | None = None,
    **overrides: Any,
) -> dict[str, Any]:  # fmt: skip
    """Run a recipe, a file or a shipped name, and return its result; `train={"max_steps": 2}` edits it in place.

    Raises:
        RecipeError: the recipe cannot be run; all its mistakes at once.
        UsageError: the output directory holds a run already, another process is at work on it, or a run is in progress
            in this process.
        RunError: the run failed on its way.
    """
    checked = recipes.load(recipe, changes=overrides)
    folder = chosen_output(output, checked.recipe.output_dir, checked.name, resume)
    return execute(checked, folder, resume, progress or Silent())


def execute(checked: ResolvedRecipe, output: Path, resume: bool, progress: Progress) -> dict[str, Any]:
    """Run a resolved recipe in the directory `output` and return the content of its result.json."""
    with isolated():
        return _executed(checked, output, resume, progress)


def _executed(checked: ResolvedRecipe, output: Path, resume: bool, progress: Progress) -> dict[str, Any]:
    directory = earlier(output, checked, resume)
    if directory is not None and directory.is_finished and (result := directory.result):
        logger.info("%s is complete; nothing to do", output)
        return result.as_dict()
    with stopping() as stop, checked.marking(), kept_notes() as notes, ExitStack() as until_the_end:
        validate_devices(checked.recipe)
        world = World(checked.recipe.student.device)
        if directory is not None and world.is_main:
            until_the_end.enter_context(directory.held())
        parts = prepare_student(checked, resolve_inputs(checked, progress), progress)
        if directory is not None:
            validate_same_lock(directory, checked, parts)
        else:
            directory = write_directory(Path(world.broadcast(str(output))), checked, parts, world)
            if world.is_main:
                until_the_end.enter_context(directory.held())
        if world.is_main:
            notes.setTarget(_to_file(directory.log))
        result = Trainer(checked, parts, directory, world, progress, stop).run()
        world.end()
        return result.as_dict()


def earlier(output: Path, checked: ResolvedRecipe, resume: bool) -> RunDir | None:
    """Return the run to go on with; None where there is none yet.

    Raises:
        UsageError: the directory holds a run and `resume` is False, or the recipe has changed.
    """
    if not RunDir.is_run(output):
        validate_output_path(output)
        return None
    if not resume:
        raise taken(output)
    directory = RunDir.open(output)
    if changed := difference(directory.resolved, checked.resolved()):
        lines = "\n".join(f"  {line}" for line in changed)
        raise UsageError(
            f"the recipe changed since {output} was started:\n{lines}\n"
            "why: a resumed run continues what was begun, bit for bit\nfix: undo the change, or start a new run"
        )
    return directory


def write_directory(output: Path, checked: ResolvedRecipe, parts: RunInputs, world: World) -> RunDir:
    """Make the run directory on the main process; the others wait for it."""
    if world.is_main:
        RunDir.create(output, checked.resolved(), build_lock(checked, parts))
    world.wait()
    return RunDir.open(output)


def validate_same_lock(directory: RunDir, checked: ResolvedRecipe, parts: RunInputs) -> None:
    """Refuse to resume if models or data have changed; warn of changed plugin files and versions.

    Raises:
        UsageError: the recipe is the same, but what it names is not.
    """
    before, now = directory.lock, build_lock(checked, parts)
    parts_that_count = ("models", "data")
    if changed := difference(*({name: record[name] for name in parts_that_count} for record in (before, now))):
        lines = "\n".join(f"  {line}" for line in changed)
        raise UsageError(
            f"models or data changed since {directory.path} was started:\n{lines}\n"
            "why: a resumed run continues what was begun, bit for bit\nfix: bring them back, or start a new run"
        )
    for line in difference(before, now):
        logger.warning("going on although this changed since the run was started: %s", line)


def build_lock(checked: ResolvedRecipe, parts: RunInputs) -> dict[str, Any]:
    """Return the lock of a run on these parts."""
    models = {"student": parts.student, "teacher": parts.teacher}
    return lock_record(checked, models, parts.corpus.fingerprint)


@contextmanager
def kept_notes() -> Iterator[MemoryHandler]:
    """Keep the run's notes until they have a log to go to."""
    handler = MemoryHandler(capacity=1, flushLevel=logging.DEBUG)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        target = handler.target
        handler.close()
        if target is not None:
            target.close()


class _Log(logging.FileHandler):
    """The log file of a run. A full disk truncates it silently; the run's own files report the full disk."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def _to_file(log: Path) -> logging.FileHandler:
    handler = _Log(log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    return handler
