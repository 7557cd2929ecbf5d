"""Execution of a recipe: start or resume a run in its directory."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import torch

from neoplug import recipe as recipes
from neoplug.data.encode.clock import today
from neoplug.distributed.restarts import attempt
from neoplug.distributed.world import World
from neoplug.environment.determinism import deterministic
from neoplug.environment.dtypes import resolve_dtype
from neoplug.errors.text import TextFormatter
from neoplug.files.contents import RECORD
from neoplug.hookspecs import Role
from neoplug.recipe import ResolvedRecipe
from neoplug.registry import given_classes
from neoplug.registry.confinement import exits_refused
from neoplug.runs.directory import RunDir, chosen_output
from neoplug.runs.failure import lost_processes_named
from neoplug.runs.inputs import RunInputs, prepare_student, resolve_inputs
from neoplug.runs.lock import lock_record, pinned
from neoplug.runs.micro_batch import sizes_here, with_chosen
from neoplug.runs.preflight import validate_devices
from neoplug.runs.process import isolated
from neoplug.runs.progress import Progress, Silent
from neoplug.runs.resuming import begun_with, run_to_resume, sized_as_begun, validate_global_batch, validate_same_lock
from neoplug.runs.signals import stopping
from neoplug.runs.teacher_build import with_cache
from neoplug.runs.trainer import Trainer

logger = logging.getLogger("neoplug")


def run(
    recipe: str | Path, *, output: str | Path | None = None, resume: bool = False, progress: Progress | None = None,
    plugins: Sequence[type] = (), trust: Sequence[str | Path] = (), **overrides: Any,
) -> dict[str, Any]:  # fmt: skip
    """Run a recipe, given as a file or by the name of a shipped one, and return the content of its result.json.

    Keyword arguments override sections of the recipe: `train={"max_steps": 2}`.

    plugins  classes that the recipe may name, each by its `__name__`, such as those of a notebook
    trust    code that may run, as the option `--trust` of the command line names it

    Raises:
        RecipeError: the recipe cannot be run; the message lists all mistakes.
        UsageError: the output directory holds a run already, another process is at work on it, or a run is in progress
            in this process.
        RunError: the run failed.
    """
    with given_classes(plugins):
        checked = recipes.load(recipe, changes=overrides, trust=trust)
        resume = resume or attempt() > 0
        folder = chosen_output(output, checked.recipe.output_dir, checked.name, resume)
        return execute(checked, folder, resume, progress or Silent())


def execute(
    checked: ResolvedRecipe, output: Path, resume: bool, progress: Progress, group: str | None = None
) -> dict[str, Any]:
    """Run a resolved recipe in the directory `output` and return the content of its result.json.

    group  what the run belongs to in trackers, such as the name of a study
    """
    with isolated(), exits_refused(), deterministic(checked.recipe.train.full_determinism):
        return _execute(checked, output, resume, progress, group)


def _execute(
    checked: ResolvedRecipe, output: Path, resume: bool, progress: Progress, group: str | None
) -> dict[str, Any]:
    directory = run_to_resume(output, checked, resume)
    if directory is not None and _is_complete(directory) and (result := directory.result):
        logger.info("%s is complete; nothing to do", output)
        return result.as_dict()
    with stopping() as stop, checked.marking(), buffered_log() as log_buffer, ExitStack() as cleanup:
        validate_devices(checked.recipe)
        world = World(checked.recipe.student.device, checked.recipe.train.ddp_timeout)
        if directory is not None and world.is_main:
            cleanup.enter_context(directory.held())
        if directory is not None:
            checked = sized_as_begun(directory, checked)
            validate_global_batch(directory, checked, world.size)
        with lost_processes_named(world):
            as_begun = checked.pinned(begun_with(directory)) if directory else checked
            inputs = resolve_inputs(as_begun, progress, world.broadcast(today()))
            chosen = {} if directory else sizes_here(checked, inputs, world)
            sized, as_begun = with_chosen(checked, chosen), with_chosen(as_begun, chosen)
            inputs = with_cache(sized, prepare_student(as_begun, inputs, progress), world, progress)
            if directory is not None:
                validate_same_lock(directory, build_lock(checked, inputs, world))
            else:
                directory = create_directory(Path(world.broadcast(str(output))), checked, inputs, world, chosen)
                if world.is_main:
                    cleanup.enter_context(directory.held())
        if world.is_main:
            checked.consent.remember()
            log_buffer.setTarget(_log_file_handler(directory.log))
        result = Trainer(sized, inputs, directory, world, progress, stop, group, as_begun).run()
        world.end()
        return result.as_dict()


def _is_complete(directory: RunDir) -> bool:
    """Return whether nothing is left to do. A run that was killed before it recorded its contents repeats its end."""
    return directory.is_finished and (directory.is_recorded or not (directory.path / RECORD).exists())


def create_directory(
    output: Path, checked: ResolvedRecipe, inputs: RunInputs, world: World, chosen: Mapping[str, int]
) -> RunDir:
    """Create the run directory on the main process; the other processes wait for it.

    Its recipe names the commits of what the hub had, the date that a chat template read, and the sizes that were chosen
    for `auto`: it repeats the run.
    """
    if world.is_main:
        lock = build_lock(checked, inputs, world, chosen)
        RunDir.create(output, checked.pinned(pinned(lock)).resolved(), lock)
    world.wait()
    return RunDir.open(output)


def lock_here(checked: ResolvedRecipe, progress: Progress) -> dict[str, Any]:
    """Return the lock that a run would have here and now; nothing is trained, and no teacher's output is stored."""
    with isolated(), exits_refused(), checked.marking():
        validate_devices(checked.recipe)
        world = World(checked.recipe.student.device)
        inputs = resolve_inputs(checked, progress, world.broadcast(today()))
        chosen = sizes_here(checked, inputs, world)
        return build_lock(checked, prepare_student(with_chosen(checked, chosen), inputs, progress), world, chosen)


def build_lock(
    checked: ResolvedRecipe, inputs: RunInputs, world: World, chosen: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Return the lock of a run with these inputs, on these processes.

    chosen  key of `train` that is auto -> the number that the run has
    """
    models = {"student": inputs.student, "teacher": inputs.teacher}
    loaded = models | {"student": inputs.base}
    weights = {role: located.weights_sha256 if located else None for role, located in loaded.items()}
    corpus = inputs.corpus
    record = lock_record(checked, models, corpus.fingerprint, corpus.day, weights, corpus.commits, chosen)
    roles: tuple[Role, ...] = ("student", "teacher") if inputs.teacher else ("student",)
    record["computation"] = {
        "device": world.device.type,
        "dtypes": {role: _dtype(checked, role, world) for role in roles},
        "ranks": world.size,
        "threads": torch.get_num_threads(),
    }
    if inputs.cache is not None:
        record["models"]["teacher"]["cache"] = inputs.cache.lock
    return record


def _dtype(checked: ResolvedRecipe, role: Role, world: World) -> str:
    """Return the name of the type in which a model computes."""
    section = getattr(checked.recipe, role)
    return str(resolve_dtype(section.dtype, section.device or world.device)).removeprefix("torch.")


@contextmanager
def buffered_log() -> Iterator[MemoryHandler]:
    """Buffer the package's log records from DEBUG up; they go to the handler's target as soon as it is set."""
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


class _LogFile(logging.FileHandler):
    """The log file of a run. Its write errors are ignored: the run's other files report a full disk."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def _log_file_handler(log: Path) -> logging.FileHandler:
    handler = _LogFile(log, encoding="utf-8")
    handler.setFormatter(TextFormatter("%(asctime)s %(levelname)s %(message)s"))
    return handler
