"""The memory of a training step, foretold: neoplug's own loop takes a step on models without data.

Models, adapter, optimizer and its state are built in a mode in which tensors have shapes but no data, and `distil`
takes one step on the largest micro-batch while a tracker counts the storages that are alive. So the numbers hold for
any adapter, loss, head, quantisation or teacher whose operators torch can run on shapes. Of several ranks it is the
first; the others are simulated.
"""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from neoplug.data.batch import Batch, Document
from neoplug.data.sampler import BatchSampler
from neoplug.distributed.pretended import PretendedWorld, pretended_ranks
from neoplug.distributed.sharding import shard_layers, shard_root
from neoplug.environment.dtypes import resolve_dtype
from neoplug.environment.fake_floats import FakeFloats
from neoplug.environment.storage_tracker import StorageTracker, local_part, tensors_of
from neoplug.errors import PluginError
from neoplug.models.language_model import LanguageModel
from neoplug.models.load import enable_checkpointing
from neoplug.models.recorder import decoder_layers
from neoplug.models.shapes import model_of_shapes, with_adapter_of_shapes
from neoplug.models.verify import head_name, likely_layout, unverified_model
from neoplug.runs.adapted_weights import add_adapter
from neoplug.runs.fake_loop import EVENTS, LongestRows, OneStep
from neoplug.runs.fake_teacher import StoredShapes, hidden_size, stored_shapes
from neoplug.runs.own_teacher import average_teacher, base_teacher
from neoplug.runs.preflight import prepare_skeleton
from neoplug.runs.saved_student import trainable_as_float32
from neoplug.runs.sharding import is_asked, number_of_processes, shard_student
from neoplug.runs.steps import make_losses
from neoplug.runs.teacher_cost import decoded_sample
from neoplug.seeds import generator
from neoplug.teachers.itself import WeightAverage
from neoplug.teachers.live import LiveTeacher
from neoplug.training import objective
from neoplug.training.batch_source import BatchSource
from neoplug.training.loop import distil, measure_gradient_norms
from neoplug.training.module import StudentWithObjective
from neoplug.training.objective import blocks
from neoplug.training.optim import make_optimizer, make_schedule

if TYPE_CHECKING:
    from neoplug.data import Corpus
    from neoplug.hookspecs import Role
    from neoplug.models.reference import ResolvedModel
    from neoplug.models.vocabulary import Vocabulary
    from neoplug.recipe import ResolvedRecipe
    from neoplug.teachers.base import Teacher
    from neoplug.teachers.signals import EntriesSignal, StatesSignal

LARGEST = 2**22  # tokens of a micro-batch; its integers have their values
AT_ONCE = 2  # micro-batches of the step: from the second on there are gradients beside the activations


class CannotForetellError(Exception):
    """A step cannot be run on shapes: the text says what cannot."""


@dataclass(frozen=True)
class Foretold:
    """Bytes of tensors of one rank in a training step.

    peak       of all devices together
    on_device  device -> its peak
    device     of the student
    teacher    of the teacher's model, or of what is in memory of a stored one
    frozen     of the student's frozen weights and buffers
    trainable  of the trainable weights
    average    of their average, where that is the teacher
    optimizer  of the optimizer's state
    at_start   of all devices together before training: models that are whole until the adapter is there, and a copy of
               an adapted student, with its original trained weights, on which saving is tried
    """

    peak: int
    on_device: dict[str, int]
    device: str
    teacher: int
    frozen: int
    trainable: int
    average: int
    optimizer: int
    at_start: int


def foretell(
    checked: ResolvedRecipe, models: Mapping[Role, ResolvedModel], vocabulary: Vocabulary, corpus: Corpus
) -> Foretold:
    """Return the memory of a training step on the longest rows of `corpus`, without weights.

    models  the resolved student, and the teacher where it is a model or is stored

    Nothing of the process changes: random state, process groups and plugins are as before. Where ranks are connected
    already, as for `train.per_device_train_batch_size: auto` in a run, nothing is sharded: they use no more than that.

    Raises:
        CannotForetellError: an operator, a plugin or a model cannot run on shapes.
    """
    train = checked.recipe.train
    rows = min(train.micro_batch, _epoch(corpus))
    if rows * int(corpus.row_lengths.max()) > LARGEST:
        raise CannotForetellError(f"a micro-batch of {rows:,} rows has more than {LARGEST:,} tokens")
    count = min(AT_ONCE, max(1, train.gradient_accumulation_steps))
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=range(torch.cuda.device_count())))
        stack.enter_context(_quiet())
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        stack.enter_context(_older_left_out())
        world = PretendedWorld(checked.recipe.student.device, number_of_processes())
        shards = is_asked(checked) and not torch.distributed.is_initialized()
        if shards:
            stack.enter_context(pretended_ranks(world.size))
        try:
            copied = replace(checked, plugins=checked.plugins.copied(), references=checked.references.copied())
            step = _Step(copied, models, vocabulary, corpus, rows, count, world, shards)
            return step.run()
        except Exception as error:
            raise CannotForetellError(_reason(error)) from error
        finally:
            gc.collect()


def _epoch(corpus: Corpus) -> int:
    """Return the rows of an epoch, which no micro-batch exceeds."""
    return len(corpus.row_lengths) if corpus.mixture is None else sum(corpus.mixture.epoch_rows)


def _reason(error: Exception) -> str:
    """Return which plugin, operator or model cannot run on shapes."""
    cause = error.__cause__ if isinstance(error, PluginError) and error.__cause__ else error
    operator = getattr(cause, "func", None)
    text = f"the operator {operator}" if operator is not None else f"{type(cause).__name__}: {cause}".splitlines()[0]
    return f"`{error.plugin}`, {text}" if isinstance(error, PluginError) else text


@contextmanager
def _older_left_out() -> Iterator[None]:
    """Let the garbage collector look at new objects only: it is called in each pass, and there are many older ones."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _quiet() -> Iterator[None]:
    """Log nothing: what plugins report of a model, the plan has reported of its skeleton."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@dataclass(eq=False)
class _Step:
    """One step on shapes; arguments as of `foretell`.

    rows    of a micro-batch
    count   micro-batches of the step
    shards  whether models are sharded over the ranks of `world`
    """

    checked: ResolvedRecipe
    models: Mapping[Role, ResolvedModel]
    vocabulary: Vocabulary
    corpus: Corpus
    rows: int
    count: int
    world: PretendedWorld
    shards: bool

    def run(self) -> Foretold:
        """Build the models, take the step, and return what the tracker counted."""
        recipe, plugins = self.checked.recipe, self.checked.plugins
        prepared, sample = self.batches(), self.sample()
        tracker = StorageTracker()
        with FakeFloats(), tracker, patch.object(objective, "blocks", _few_blocks):
            student, at_start = self.student()
            average = None
            if recipe.taught_by == "ema" and recipe.teacher is not None:
                average = WeightAverage.of(student.module, recipe.teacher.decay or 0.0)
            teacher = self.teacher(student, average, sample)
            optimizer = make_optimizer(student.module, plugins, recipe.train.learning_rate)
            schedule = make_schedule(optimizer, plugins, recipe.train, 1)
            trained = [weight for weight in student.module.parameters() if weight.requires_grad]
            for weight in trained:
                weight.grad = torch.zeros_like(weight)
            optimizer.step()  # all steps but the first have the state that it makes
            optimizer.zero_grad()
            config = OneStep(
                student=student,
                teacher=teacher,
                average=average,
                losses=make_losses(plugins, isinstance(teacher, StoredShapes) and teacher.serves != "full"),
                references=make_losses(self.checked.references),
                weights={n: w.calibrated(w.value) if w.calibrate else w for n, w in self.checked.weights.items()},
                plugins=plugins,
                corpus=self.corpus,
                sampler=self.sampler(),
                optimizer=optimizer,
                schedule=schedule,
                world=self.world,
                settings=recipe.train,
                total_steps=1,
                eval_steps=None,
                seed=recipe.seed,
                prepared=prepared,
            )
            of_optimizer = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
            tracker.count(of_optimizer)
            tracker.count(tensor for batch, _ in prepared for tensor in _tensors(batch))
            gc.collect()
            tracker.reset_peak()
            if any(weight.calibrate for weight in self.checked.weights.values()):
                module = StudentWithObjective(student, plugins.functions("token_weight"))
                measure_gradient_norms(config, module, [*config.losses, *config.references], prepared, 0, 0.0)
            distil(config, EVENTS)
        weights = {local_part(weight).untyped_storage()._cdata for weight in trained}
        every = tensors_of(student.module)
        of_teacher = _bytes(teacher.tensors() if isinstance(teacher, StoredShapes) else self.teacher_tensors(teacher))
        return Foretold(
            peak=tracker.total_peak,
            on_device={device: size for device, size in tracker.peak.items() if size},
            device=str(student.device),
            teacher=of_teacher,
            frozen=_bytes([tensor for tensor in every if local_part(tensor).untyped_storage()._cdata not in weights]),
            trainable=_bytes(trained),
            average=_bytes(average.values.values()) if average else 0,
            optimizer=_bytes(of_optimizer),
            at_start=of_teacher + at_start,
        )

    def teacher_tensors(self, teacher: Teacher | None) -> list[Tensor]:
        """Return the tensors of a second model in memory; none where the student is its own teacher."""
        model = teacher.model if teacher is not None and not self.checked.recipe.taught_by else None
        return [] if model is None else tensors_of(model.module)

    def sampler(self) -> BatchSampler:
        """Return a sampler whose only step has the longest rows in each of its micro-batches."""
        return LongestRows(self.rows, self.rows, self.count, 1, 0)

    def batches(self) -> list[tuple[Batch, bool]]:
        """Return the micro-batches of the step, as the recipe's plugins edit them; made with their values."""
        order = self.corpus.row_lengths.argsort()[::-1]
        longest: list[Sequence[Document]] = [self.corpus.rows[order[i % len(order)]] for i in range(self.rows)]
        cached = self.checked.recipe.teacher is not None and bool(self.checked.recipe.teacher.cache)
        source = BatchSource(
            corpus=replace(self.corpus, rows=longest),  # type: ignore[arg-type]
            sampler=self.sampler(), plugins=self.checked.plugins, seed=self.checked.recipe.seed, rank=0,
            vocabulary=self.vocabulary, teacher_is_stored=cached,
        )  # fmt: skip
        return list(source.micro_batches(0, 0.0))

    def load(self, role: Role, dtype: torch.dtype) -> Any:
        """Return a model without data, as `ModelLoader.load` loads it."""
        section = getattr(self.checked.recipe, role)
        return model_of_shapes(
            self.models[role],
            dtype=dtype,
            device=section.device or self.world.device,
            attn_implementation=section.attn_implementation,
            plugins=self.checked.plugins,
            role=role,
            section="teacher.load" if role == "teacher" else "student.load",
            prepare=partial(prepare_skeleton, self.checked) if role == "student" else None,
        )

    def dtype(self, role: Role) -> torch.dtype:
        """Return a model's compute type."""
        section = getattr(self.checked.recipe, role)
        return resolve_dtype(section.dtype, section.device or self.world.device)

    def student(self) -> tuple[LanguageModel, int]:
        """Return the student with its adapter: trainable weights in float32, frozen ones in its dtype.

        And the bytes of what there is of it before training.
        """
        recipe, plugins = self.checked.recipe, self.checked.plugins
        ((_, name),) = plugins.named("add_adapter")
        base = self.load("student", self.dtype("student"))
        weights = set(map(id, base.parameters()))
        head = head_name(base)
        if recipe.train.gradient_checkpointing:
            enable_checkpointing(base)
        model = add_adapter(plugins, base, batches=None, total_steps=1000, rng=generator(recipe.seed, name))
        trainable_as_float32(model)
        autocast = None if self.dtype("student") == torch.float32 else self.dtype("student")
        student = _Collected(**vars(unverified_model(model, head, self.vocabulary, autocast=autocast)))
        student.layout = likely_layout(student)
        every, trained = tensors_of(model), [weight for weight in model.parameters() if weight.requires_grad]
        at_start = _bytes(every)
        if len(trained) < len(list(model.parameters())):
            at_start += _bytes(every) + _bytes(trained)
        del every, trained
        if self.shards:
            names = {name for name, weight in model.named_parameters() if id(weight) in weights}
            shard_student(self.checked, model, names, self.world)
        return student, at_start

    def sample(self) -> StatesSignal | EntriesSignal | None:
        """Return what the recipe's cache gives for a few tokens; None without one."""
        teacher = self.checked.recipe.teacher
        if teacher is None or not teacher.cache:
            return None
        return decoded_sample(self.checked, hidden_size(self.models["teacher"]), self.vocabulary.size)

    def teacher(
        self, student: LanguageModel, average: WeightAverage | None, sample: StatesSignal | EntriesSignal | None
    ) -> Teacher | None:
        """Return the teacher of the recipe: a model, what is stored of one, or the student in another state."""
        section = self.checked.recipe.teacher
        if section is None:
            return None
        if average is not None:
            return average_teacher(student, average)
        if section.itself:
            return base_teacher(student)
        device = torch.device(section.device or self.world.device)
        if sample is not None:
            return stored_shapes(
                self.checked, self.models["teacher"], self.dtype("teacher"), self.vocabulary, device, sample
            )
        module: nn.Module = self.load("teacher", self.dtype("teacher"))
        name, sharded = head_name(module), self.shards and not section.device
        if sharded:
            shard_layers(decoder_layers(module), self.world.mesh)
        if stored := self.models["teacher"].adapter:
            module = with_adapter_of_shapes(module, stored)
        if sharded:
            shard_root(module, self.world.mesh)
        teacher = unverified_model(module, name, self.vocabulary, role="teacher")
        teacher.layout = likely_layout(teacher)
        return LiveTeacher(teacher)


class _Collected(LanguageModel):
    """A model that lets go of what an earlier pass left in reference cycles: tensors without data leave some."""

    def hidden(self, batch: Batch) -> Tensor:
        """Return the hidden states [N, H] that predict the batch's answer tokens."""
        gc.collect()
        return super().hidden(batch)


def _few_blocks(rows: int, vocabulary: int, device: torch.device, trained: int = 0) -> Iterator[slice]:
    """Yield the first blocks of the objective and the last: the ones between have the shapes of the first."""
    every = list(blocks(rows, vocabulary, device, trained))
    yield from every if len(every) < 4 else [*every[:2], every[-1]]


def _tensors(batch: Batch) -> Iterator[Tensor]:
    values = [*vars(batch).values(), *(vars(batch.teacher).values() if batch.teacher else ())]
    yield from (value for value in values if isinstance(value, Tensor))


def _bytes(tensors: Any) -> int:
    """Return the bytes of the storages of tensors, each once."""
    storages = [local_part(tensor).untyped_storage() for tensor in tensors]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())
