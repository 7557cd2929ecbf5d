"""Evaluation of the student of a finished run, or of any model, by a recipe's held-out text, teacher and probes."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from neoplug import recipe as recipes
from neoplug.distributed.world import World
from neoplug.errors import UsageError
from neoplug.models.verify import head_name
from neoplug.recipe import ResolvedRecipe, Student
from neoplug.recipe.merge import from_word
from neoplug.registry import Plugins
from neoplug.runs.directory import RunDir
from neoplug.runs.inputs import resolve_inputs
from neoplug.runs.model_loader import ModelLoader
from neoplug.runs.preflight import validate_devices
from neoplug.runs.progress import Progress
from neoplug.runs.saved_student import adapter_plugins, as_trained, base_of, is_peft, widened, with_peft

logger = logging.getLogger(__name__)
TARGET = "RUN_OR_MODEL"  # place of mistakes that come from the target, not from the recipe


def checked_for(target: str, recipe: str | Path, overrides: Sequence[str] = ()) -> ResolvedRecipe:
    """Return the recipe with the student to evaluate in place of its own; overrides are applied last.

    target  the directory of a finished run, or a model as recipes name them

    Raises UsageError where there is neither, RecipeError for what is wrong with the recipe.
    """
    if RunDir.is_run(target):
        return recipes.load(recipe, overrides, from_word(_student_of(RunDir.open(target)), TARGET, target, Path.cwd()))
    if Path(target).is_dir() and not (Path(target) / "config.json").is_file():
        raise UsageError(
            f"{target} is neither a run nor a model: it has no recipe.yaml and lock.json, and no config.json\n"
            "fix: name the folder of a finished run, or one that `save_pretrained` wrote"
        )
    placed = ("dtype", "device", "attn_implementation")  # how it computes is still set by the recipe
    others = dict.fromkeys(key for key in Student.model_fields if key not in placed)
    changes = {"student": {**others, "model": target}}
    return recipes.load(recipe, overrides, from_word(changes, TARGET, target, Path.cwd()))


def remeasure(target: str, checked: ResolvedRecipe, progress: Progress) -> dict[str, Any]:
    """Measure `target` by the recipe of `checked_for`; writes nothing into a run.

    Returns {format, target, student: {metrics, probes}, teacher: the same, empty without one}.
    """
    directory = RunDir.open(target) if RunDir.is_run(target) else None
    with checked.marking():
        validate_devices(checked.recipe)
        parts = resolve_inputs(checked, progress)
        if directory is not None:
            whole = directory.model.is_dir()
            parts = replace(parts, trains_whole=whole, base=parts.base if whole else base_of(directory))
        roles = ModelLoader(checked, parts, World(checked.recipe.student.device))
        progress.phase("loading the models")
        teacher = roles.teacher()
        bare = roles.load("student", parts.base)
        name = head_name(bare)
        student = roles.student(bare if directory is None else _trained(bare, directory), name)
        progress.phase("evaluating the student and the teacher" if teacher else "evaluating the student")
        ours, theirs = roles.measured_both(student, teacher, roles.held_out())
    return {"format": 1, "target": target, "student": ours.values, "teacher": theirs.values if theirs else {}}


def _student_of(directory: RunDir) -> Mapping[str, Any]:
    """Return a run's student and adapter as changes of another recipe.

    Raises:
        UsageError: the run has not finished.
    """
    if not directory.is_finished:
        raise UsageError(
            f"{directory.path} is not finished, so there is no student to measure\n"
            "fix: go on with `neoplug run RECIPE --output RUN --resume`"
        )
    resolved = directory.resolved
    student = dict.fromkeys(Student.model_fields) | resolved["student"] | {"prepare": None, "adapter_path": None}
    for folder in (directory.model, directory.student):
        if folder.is_dir():
            student |= {"model": str(folder.absolute()), "revision": None}
    return {"student": student, "adapter": resolved["adapter"]}


def _trained(bare: nn.Module, directory: RunDir) -> nn.Module:
    """Return a run's student: its base with the adapter as it was trained, or the whole model that it left."""
    if directory.model.is_dir():
        return bare
    plugins = adapter_plugins(directory)
    return widened(_with_adapter(bare, directory, plugins)).eval()


def _with_adapter(bare: nn.Module, directory: RunDir, plugins: Plugins) -> nn.Module:
    if is_peft(directory) and not plugins.implements("save_adapter"):
        adapted: nn.Module = with_peft(bare, directory.adapter)
        return adapted
    return as_trained(bare, directory, plugins)
