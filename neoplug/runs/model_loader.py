"""Loading, verification and evaluation of a recipe's teacher and student."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neoplug.data.batch import Batch
from neoplug.distributed.sharding import shard_layers, shard_root
from neoplug.distributed.world import World
from neoplug.environment.dtypes import resolve_dtype
from neoplug.evaluation.evaluate import Evaluation, evaluate, held_out_batches, metrics_of
from neoplug.evaluation.probes import probe
from neoplug.hookspecs import Role
from neoplug.models.language_model import LanguageModel
from neoplug.models.load import load_model
from neoplug.models.recorder import decoder_layers
from neoplug.models.reference import ResolvedModel
from neoplug.models.stored_adapter import load_adapter
from neoplug.models.verify import head_name, language_model
from neoplug.recipe import ResolvedRecipe
from neoplug.registry import Plugins
from neoplug.runs.inputs import RunInputs
from neoplug.runs.preflight import sets_stored_form
from neoplug.runs.saved_student import with_adapter
from neoplug.teachers.base import Teacher
from neoplug.teachers.cached import CachedTeacher
from neoplug.teachers.live import LiveTeacher

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class ModelLoader:
    """Loads the teacher and the student of a recipe, and evaluates them on the held-out text."""

    checked: ResolvedRecipe
    inputs: RunInputs
    world: World

    def load(self, role: Role, located: ResolvedModel, plugins: Plugins | None = None, *, sharded: bool = False) -> Any:
        """Load the weights of a model with the settings of its section of the recipe.

        plugins  whose hooks are called in place of those of all plugins of the recipe
        sharded  shard the weights of its layers over the ranks; every rank loads it
        """
        section = getattr(self.checked.recipe, role)
        return load_model(
            located,
            dtype=self.dtype(role) if role == "teacher" or self.inputs.trains_whole is False else torch.float32,
            device=torch.device(section.device or self.world.device),
            attn_implementation=section.attn_implementation,
            plugins=plugins or self.checked.plugins,
            role=role,
            section="teacher.load" if role == "teacher" else "student.load",
            shard=(lambda model: shard_layers(decoder_layers(model), self.world.mesh)) if sharded else None,
        )

    def load_trained(self, folder: Path) -> Any:
        """Load a student that was trained and saved whole, in `folder`.

        Treatments changed it before it was trained (`after_load`), so only the plugins of `student.load` are called.
        """
        located = replace(self.inputs.student, path=str(folder), revision=None, kind="local", adapter=None)
        return self.load("student", located, Plugins({"student.load": self.checked.plugins.section("student.load")}))

    def add_saved_adapter(self, base: nn.Module, adapter: Path, plugins: Plugins) -> nn.Module:
        """Return the student: a loaded base with the adapter in a folder, its frozen weights in the student's dtype.

        plugins  of the adapter, of which one may load it
        """
        weights = list(base.parameters())
        adapted = with_adapter(base, adapter, plugins)
        self.round_frozen_weights(weights)
        return adapted.eval()

    def dtype(self, role: Role) -> torch.dtype:
        """Return a model's compute type: its section's, else bfloat16 if its device supports it natively."""
        section = getattr(self.checked.recipe, role)
        return resolve_dtype(section.dtype, section.device or self.world.device)

    def load_teacher(self) -> Teacher | None:
        """Load the teacher, if the recipe has one: its model, or what the recipe's cache stores of its output.

        The model is sharded over the ranks if the recipe says so, unless it has a device of its own.
        """
        if self.inputs.teacher is None:
            return None
        section = self.checked.recipe.teacher
        if self.inputs.cache is None:
            return LiveTeacher(self.load_teacher_model(sharded=self.shards and not (section and section.device)))
        device = torch.device((section and section.device) or self.world.device)
        return self.inputs.cache.teacher(self.inputs.vocabulary, device)

    @property
    def shards(self) -> bool:
        """Whether models are sharded over the ranks."""
        return self.world.size > 1 and self.checked.recipe.train.shard != "none"

    def load_teacher_model(self, *, sharded: bool = False) -> LanguageModel:
        """Load the model of the recipe's teacher; `sharded`: every rank runs it equally often."""
        assert self.inputs.teacher is not None
        module = self.load("teacher", self.inputs.teacher, sharded=sharded)
        name, longest = head_name(module), self.checked.recipe.data.max_length
        if stored := self.inputs.teacher.adapter:
            module = load_adapter(module, stored)
        if sharded:
            shard_root(module, self.world.mesh)
        return language_model(module, name, self.inputs.vocabulary, role="teacher", longest=longest)

    def verify_student(self, module: nn.Module, name: str) -> LanguageModel:
        """Verify head and layout of the loaded student; return it with autocast to its dtype.

        name  of the head, as `head_name` returns it
        """
        dtype = self.dtype("student")
        autocast = None if dtype == torch.float32 else dtype
        longest = self.checked.recipe.data.max_length
        return language_model(module, name, self.inputs.vocabulary, autocast=autocast, longest=longest)

    def round_frozen_weights(self, weights: Iterable[nn.Parameter]) -> None:
        """Convert frozen weights to the student's dtype, if it was loaded in float32 because these were not yet known.

        weights  the weights of the base, after the adapter was added
        """
        if self.inputs.trains_whole is None:
            for weight in weights:
                if not weight.requires_grad and weight.dtype == torch.float32:
                    weight.data = weight.data.to(self.dtype("student"))

    def has_rounded(self, weights: Iterable[nn.Parameter], plugin: str) -> bool:
        """Return whether trained weights of the base were rounded when it was loaded; log it.

        The dry run on the meta device may not find out which weights `plugin` trains.
        """
        if self.inputs.trains_whole is not False or sets_stored_form(self.checked):
            return False
        rounded = sum(weight.requires_grad and weight.dtype != torch.float32 for weight in weights)
        if rounded:
            what = "`%s` trains %d weights of the base, other than on the meta device: it is loaded again, in float32"
            logger.warning(what, plugin, rounded)
        return bool(rounded)

    def held_out(self) -> list[Batch]:
        """Return the held-out text in batches on the student's device."""
        size = self.checked.recipe.evaluate.per_device_eval_batch_size
        return held_out_batches(self.inputs.corpus.held_out, size, self.world.device)

    def evaluate_student(self, student: LanguageModel, teacher: Teacher | None, batches: list[Batch]) -> Evaluation:
        """Return the evaluation of the student, probes included. Every rank calls it with all batches."""
        ours, _ = evaluate(student, teacher, batches, self.world)
        return Evaluation({**metrics_of(ours), "probes": self._probes(student, teacher, batches)}, ours)

    def evaluate_both(
        self, student: LanguageModel, teacher: Teacher | None, batches: list[Batch]
    ) -> tuple[Evaluation, Evaluation | None]:
        """Return the evaluations of the student and of the teacher, if there is one.

        The teacher's has no probes if the teacher is neither a model in memory nor a cache with their results.
        """
        ours, theirs = evaluate(student, teacher, batches, self.world)
        of_teacher = None if theirs is None else Evaluation(metrics_of(theirs), theirs)
        if of_teacher is not None and teacher is not None and teacher.model is not None:
            texts = [batch.for_teacher() for batch in batches]
            of_teacher.values["probes"] = self._probes(teacher.model, None, texts)
        if of_teacher is not None and isinstance(teacher, CachedTeacher):
            of_teacher.values["probes"] = dict(teacher.probes)
        return Evaluation({**metrics_of(ours), "probes": self._probes(student, teacher, batches)}, ours), of_teacher

    def _probes(self, model: LanguageModel, teacher: Teacher | None, batches: list[Batch]) -> dict[str, Any]:
        live = None if teacher is None else teacher.model
        return probe(self.checked.plugins, model, live, batches, self.inputs.tokenizer)
