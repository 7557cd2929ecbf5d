"""Teacher and student as the recipe wants them: loaded, proved, measured."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from neoplug.data.batch import Batch
from neoplug.distributed.world import World
from neoplug.environment.dtypes import resolve_dtype
from neoplug.evaluation.evaluate import Evaluation, evaluate, held_out_batches, means
from neoplug.evaluation.probes import probe
from neoplug.hookspecs import Role
from neoplug.models.language_model import LanguageModel
from neoplug.models.load import load_model
from neoplug.models.reference import ResolvedModel
from neoplug.models.stored_adapter import load_adapter
from neoplug.models.verify import head_name, language_model
from neoplug.recipe import ResolvedRecipe
from neoplug.runs.inputs import RunInputs
from neoplug.teachers.base import Teacher
from neoplug.teachers.live import LiveTeacher


@dataclass(eq=False)
class ModelLoader:
    """Teacher and student as the recipe wants them, and their evaluation on held-out text."""

    checked: ResolvedRecipe
    parts: RunInputs
    world: World

    def load(self, role: Role, located: ResolvedModel) -> Any:
        """Load a model as its section of the recipe wants it."""
        section = getattr(self.checked.recipe, role)
        return load_model(
            located,
            dtype=self.dtype(role) if role == "teacher" or self.parts.trains_whole is False else torch.float32,
            device=torch.device(section.device or self.world.device),
            attn_implementation=section.attn_implementation,
            plugins=self.checked.plugins,
            role=role,
            section="teacher.load" if role == "teacher" else "student.load",
        )

    def dtype(self, role: Role) -> torch.dtype:
        """Return a model's compute type: its section's, else bfloat16 if its device supports it natively."""
        section = getattr(self.checked.recipe, role)
        return resolve_dtype(section.dtype, section.device or self.world.device)

    def teacher(self) -> Teacher | None:
        """Load the teacher, if the recipe has one."""
        if self.parts.teacher is None:
            return None
        module = self.load("teacher", self.parts.teacher)
        name, longest = head_name(module), self.checked.recipe.data.max_length
        if stored := self.parts.teacher.adapter:
            module = load_adapter(module, stored)
        return LiveTeacher(language_model(module, name, self.parts.vocabulary, role="teacher", longest=longest))

    def student(self, module: nn.Module, name: str) -> LanguageModel:
        """Prove the student's head and layout; it computes in its own dtype, trainable weights staying float32."""
        dtype = self.dtype("student")
        autocast = None if dtype == torch.float32 else dtype
        longest = self.checked.recipe.data.max_length
        return language_model(module, name, self.parts.vocabulary, autocast=autocast, longest=longest)

    def round_frozen(self, weights: Iterable[nn.Parameter]) -> None:
        """Round those weights of the student that do not train to its dtype, if it was loaded in float32 to find out.

        weights  of the base, after the adapter was added
        """
        if self.parts.trains_whole is None:
            for weight in weights:
                if not weight.requires_grad and weight.dtype == torch.float32:
                    weight.data = weight.data.to(self.dtype("student"))

    def held_out(self) -> list[Batch]:
        """Return the held-out text in batches on the student's device."""
        size = self.checked.recipe.evaluate.per_device_eval_batch_size
        return held_out_batches(self.parts.corpus.held_out, size, self.world.device)

    def measured(self, student: LanguageModel, teacher: Teacher | None, batches: list[Batch]) -> Evaluation:
        """Return the evaluation of the student, probes included. Every rank calls it with all batches."""
        ours, _ = evaluate(student, teacher, batches, self.world)
        return Evaluation({**means(ours), "probes": self._probes(student, teacher, batches)}, ours)

    def measured_both(
        self, student: LanguageModel, teacher: Teacher | None, batches: list[Batch]
    ) -> tuple[Evaluation, Evaluation | None]:
        """Return the evaluations of the student and of the teacher, if there is one.

        The teacher's has no probes where it has no model in memory.
        """
        ours, theirs = evaluate(student, teacher, batches, self.world)
        of_teacher = None if theirs is None else Evaluation(means(theirs), theirs)
        if of_teacher is not None and teacher is not None and teacher.model is not None:
            texts = [batch.for_teacher() for batch in batches]
            of_teacher.values["probes"] = self._probes(teacher.model, None, texts)
        return Evaluation({**means(ours), "probes": self._probes(student, teacher, batches)}, ours), of_teacher

    def _probes(self, model: LanguageModel, teacher: Teacher | None, batches: list[Batch]) -> dict[str, Any]:
        live = None if teacher is None else teacher.model
        return probe(self.checked.plugins, model, live, batches, self.parts.tokenizer)
