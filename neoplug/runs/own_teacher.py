"""The student of a run as its own teacher: its base, which is compared with the untouched one first, or an average."""

from contextlib import nullcontext

import torch
from safetensors.torch import load_file
from torch import nn

from neoplug.errors import UsageError
from neoplug.models.language_model import LanguageModel
from neoplug.models.switched import adapter_off, switched
from neoplug.runs.directory import RunDir
from neoplug.runs.model_loader import ModelLoader
from neoplug.runs.preflight import base_is_no_teacher, validate_separate_adapter
from neoplug.runs.save_dry_run import moved
from neoplug.runs.saved_comparison import Excerpt, relative_difference
from neoplug.runs.saved_student import checkpoint_of
from neoplug.teachers.itself import WeightAverage
from neoplug.teachers.live import LiveTeacher
from neoplug.training.checkpoint import AVERAGE

# Largest difference of logits with the adapter off, relative to the largest: the base's may be rounded in between.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


class OwnTeacher:
    """The student as its own teacher, before and after its adapter is added.

    base     the teacher before: the student without adapter
    average  of the trained weights, once the adapter is added; None where the base is the teacher
    """

    def __init__(self, loader: ModelLoader, base: LanguageModel) -> None:
        self.base = unadapted_teacher(base)
        self.average: WeightAverage | None = None
        self._loader = loader
        self._weights = list(base.module.parameters())
        self._excerpt = Excerpt.of(base, loader)
        self._logits = self._excerpt.logits(base.module)

    def of(self, student: LanguageModel) -> LiveTeacher:
        """Return the teacher of the student with its adapter.

        Raises:
            RecipeError: the base is to be the teacher, and its adapter changes it.
        """
        section = self._loader.checked.recipe.teacher
        if section is not None and section.decay is not None:
            self.average = WeightAverage.of(student.module, section.decay)
            return average_teacher(student, self.average)
        self._validate_base_is_kept(student)
        return base_teacher(student)

    def _validate_base_is_kept(self, student: LanguageModel) -> None:
        """Refuse an adapter without which the logits are not those of the untouched base.

        The trained weights are moved by noise meanwhile: most adapters start without an effect.
        """
        checked = self._loader.checked
        (plugin,) = checked.plugins.implements("add_adapter")
        validate_separate_adapter(self._weights, student.module, plugin)
        tolerance, teacher = TOLERANCE[self._loader.dtype("student")], base_teacher(student).model
        with moved(student.module, self._excerpt, checked.recipe.seed, tolerance):
            difference = relative_difference(self._excerpt.logits(teacher.module), self._logits)
        self._weights = []  # a module that is sharded has others
        if not difference <= tolerance:  # false for NaN too
            why = f"with the adapter of `{plugin}` off, the logits differ from those of the base by {difference:.2g}"
            raise base_is_no_teacher(f"{why} of the largest")


def unadapted_teacher(base: LanguageModel) -> LiveTeacher:
    """Return the teacher that is a student without adapter."""
    return LiveTeacher(switched(base, nullcontext), "base")


def base_teacher(student: LanguageModel) -> LiveTeacher:
    """Return the teacher that is the student with its adapter off."""
    is_adapted = type(student.head.module) is not nn.Linear
    return LiveTeacher(switched(student, adapter_off(student.module), changes_head=is_adapted), "base")


def average_teacher(student: LanguageModel, average: WeightAverage) -> LiveTeacher:
    """Return the teacher that is the student with the average of its trained weights."""
    return LiveTeacher(switched(student, average.in_place), "ema")


def teacher_of_saved(student: LanguageModel, taught_by: str, directory: RunDir | None) -> LiveTeacher:
    """Return the teacher that a loaded student is of itself.

    taught_by  "base" or "ema"
    directory  the run that trained the student; None for a model without adapter, which is its own base

    Raises:
        RecipeError: the run holds no base without its adapter.
        UsageError: there is no average of the student's weights.
    """
    if taught_by == "ema":
        return average_teacher(student, _saved_average(student, directory))
    if directory is None:
        return unadapted_teacher(student)
    if not hasattr(student.module, "disable_adapter"):
        raise base_is_no_teacher(f"{directory.path} holds no base from which its adapter could be taken")
    return base_teacher(student)


def _saved_average(student: LanguageModel, directory: RunDir | None) -> WeightAverage:
    """Return the average in the checkpoint of a run's student."""
    folder = checkpoint_of(directory) if directory else None
    if folder is None or not (folder / AVERAGE).is_file():
        raise UsageError(
            "there is no average of this student's weights, which `teacher: {self: ema}` takes as the teacher\n"
            "why: only checkpoints of a run with this teacher hold one\nfix: name another teacher"
        )
    weights, stored = dict(student.module.named_parameters()), load_file(folder / AVERAGE)
    if any(name not in weights or weights[name].shape != value.shape for name, value in stored.items()):
        raise UsageError(
            "the average of the weights, which `teacher: {self: ema}` takes as the teacher, does not fit this student\n"
            "why: its files hold what the trained weights amount to on the base, not the trained weights themselves\n"
            "fix: name another teacher"
        )
    average = WeightAverage({name: weights[name] for name in stored})
    for name, value in average.values.items():
        value.copy_(stored[name])
    return average
