"""A few real optimizer steps of a recipe, of which nothing is kept: the time and the memory of a run."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from neoplug.data.encode.clock import today
from neoplug.distributed.world import World
from neoplug.environment.storage_tracker import StorageTracker, tensors_of
from neoplug.models.verify import head_name
from neoplug.runs.directory import RunDir
from neoplug.runs.inputs import prepare_student, resolve_inputs
from neoplug.runs.micro_batch import sizes_here, with_chosen
from neoplug.runs.own_teacher import OwnTeacher
from neoplug.runs.process import isolated
from neoplug.runs.progress import Silent
from neoplug.runs.sharding import shard_student
from neoplug.runs.signals import Stop
from neoplug.runs.steps import count_steps, make_sampler
from neoplug.runs.teacher_build import with_cache
from neoplug.runs.trainer import Trainer
from neoplug.teachers.cached import CachedTeacher
from neoplug.training.loop import LoopConfig, LoopEvents, Verdict, distil
from neoplug.training.metrics import StepValues
from neoplug.training.optim import make_optimizer, make_schedule

if TYPE_CHECKING:
    from neoplug.recipe import ResolvedRecipe

STEPS = 3  # the first is not counted: it allocates


@dataclass(frozen=True)
class Measured:
    """What some steps took.

    seconds       of each step
    tensor_bytes  peak of this rank's tensors in them, on all devices
    run_seconds   of all steps of the run, at the median of those after the first; without evaluations and loading
    """

    seconds: list[float]
    tensor_bytes: int
    run_seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return the values as plain data."""
        return asdict(self)


def measure_steps(checked: ResolvedRecipe, steps: int = STEPS) -> Measured:
    """Train for some steps of the recipe on the real models, and return what they took; no run directory is written.

    What a run stores for later runs too is stored: tokens, a prepared student, and the output of a stored teacher for
    the rows of these steps.

    Raises:
        RecipeError: the recipe cannot be run.
        RunError: a step failed.
    """
    with isolated():
        world = World(checked.recipe.student.device)
        inputs = resolve_inputs(checked, Silent(), today())
        checked = with_chosen(checked, sizes_here(checked, inputs, world))
        inputs = prepare_student(checked, inputs, Silent())
        few = checked.pinned({("train", "max_steps"): steps, ("train", "num_train_epochs"): None})
        inputs = with_cache(few, inputs, world, Silent())
        trainer = Trainer(few, inputs, RunDir(Path()), world, Silent(), Stop())
        with _loop_of(trainer) as config:
            tracker, clock = StorageTracker(), _Clock()
            for model in (config.student, config.teacher and config.teacher.model):
                tracker.count(tensors_of(model.module) if model else ())
            if isinstance(config.teacher, CachedTeacher):
                tracker.count(config.teacher.head.module.parameters())
            tracker.count(config.average.values.values() if config.average else ())
            tracker.reset_peak()
            with tracker:
                distil(config, clock.events)
            total = count_steps(checked.recipe.train, config.sampler.steps_per_epoch)
    return Measured(clock.seconds, tracker.total_peak, total * median(clock.seconds[1:] or clock.seconds))


@contextmanager
def _loop_of(trainer: Trainer) -> Iterator[LoopConfig]:
    """Yield the loop of a run from its start, with its models loaded and verified; free them afterwards."""
    checked, loader = trainer.checked, trainer.loader
    sampler = make_sampler(checked, trainer.inputs.corpus, trainer.world.size)
    total = count_steps(checked.recipe.train, sampler.steps_per_epoch)
    teacher = loader.load_teacher()
    base = loader.load("student", trainer.inputs.base)
    name = head_name(base)
    own = OwnTeacher(loader, loader.verify_student(base, name)) if checked.recipe.taught_by else None
    adapted, names_of_base = trainer.add_adapter(base, total)
    student = loader.verify_student(adapted, name)
    if own is not None:
        teacher, trainer.average = own.of(student), own.average
    shard_student(checked, adapted, names_of_base, trainer.world)
    optimizer = make_optimizer(student.module, checked.plugins, checked.recipe.train.learning_rate)
    schedule = make_schedule(optimizer, checked.plugins, checked.recipe.train, total)
    if student.layout == "padded" and not checked.recipe.data.packing:
        sampler = replace(sampler, lengths=trainer.inputs.corpus.row_lengths)
    try:
        yield trainer.loop_config(student, teacher, sampler, total, optimizer, schedule)
    finally:
        trainer.average = None
        del teacher, base, own, student, optimizer, schedule
        gc.collect()


class _Clock:
    """Takes the seconds of each step from what the loop adds to its metrics."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def add(self, values: StepValues) -> None:
        """Wait for the device, and keep the seconds of a step."""
        if values.counts.is_cuda:
            torch.cuda.synchronize()
        self.seconds.append(values.host_values["seconds"])

    def flush(self) -> None:
        """Do nothing: no line is written."""

    @property
    def events(self) -> LoopEvents:
        """The callbacks of a loop of which nothing is kept."""
        metrics: Any = self
        return LoopEvents(
            metrics=metrics,
            on_calibrated=lambda weights: None,
            save=lambda step: None,
            evaluate=lambda step: Verdict(improved=False, stop=False),
            ends_early=lambda step: False,
            stop_requested=lambda: False,
        )
