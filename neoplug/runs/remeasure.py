"""Evaluation of the student of a finished run, or of any model, with a recipe's held-out text, teacher and probes."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from neoplug import recipe as recipes
from neoplug.distributed.world import World
from neoplug.errors import UsageError
from neoplug.models.language_model import LanguageModel
from neoplug.models.verify import head_name
from neoplug.recipe import ResolvedRecipe, Student
from neoplug.recipe.source import from_values
from neoplug.registry import given_classes
from neoplug.runs.directory import RunDir
from neoplug.runs.inputs import resolve_inputs
from neoplug.runs.model_loader import ModelLoader
from neoplug.runs.own_teacher import teacher_of_saved
from neoplug.runs.preflight import sets_stored_form, validate_devices
from neoplug.runs.progress import Progress, Silent
from neoplug.runs.saved_student import adapter_errors, adapter_plugins, base_of
from neoplug.runs.teacher_build import with_cache

logger = logging.getLogger(__name__)
TARGET = "RUN_OR_MODEL"  # place of mistakes that come from the target, not from the recipe


def evaluate(
    target: str | Path,
    recipe: str | Path,
    *,
    progress: Progress | None = None,
    plugins: Sequence[type] = (),
    trust: Sequence[str | Path] = (),
) -> dict[str, Any]:
    """Evaluate a run's student, or any model, with a recipe's held-out text, teacher and probes, as `neoplug eval`.

    target   the directory of a finished run, or a model, named as in recipes
    plugins  classes that run and recipe may name, each by its `__name__`, such as those of a notebook
    trust    code that may run, as the option `--trust` of the command line names it

    Returns {format, target, student: its metrics and `probes`, teacher: the same, empty without one}.

    Raises:
        UsageError: `target` is a folder with neither of them, or its run has not finished.
        RecipeError: the recipe with this student is not valid.
    """
    with given_classes(plugins):
        return remeasure(str(target), recipe_for_target(str(target), recipe, (), trust), progress or Silent())


def recipe_for_target(
    target: str, recipe: str | Path, overrides: Sequence[str] = (), trust: Sequence[str | Path] = ()
) -> ResolvedRecipe:
    """Return the recipe with its student replaced by `target`; overrides are applied last.

    target  the directory of a finished run, or a model, named as in recipes
    trust   code that may run, as `--trust` names it: what the recipe of a run names gives no consent

    Raises:
        UsageError: `target` is a folder with neither of them, or its run has not finished.
        RecipeError: the recipe with this student is not valid.
    """
    if RunDir.is_run(target):
        directory = RunDir.open_finished(target)
        named = from_values(_student_and_adapter(directory), TARGET, target, directory.path.resolve())
        return recipes.load(recipe, overrides, named, trust=trust)
    if Path(target).is_dir() and not (Path(target) / "config.json").is_file():
        raise UsageError(
            f"{target} is neither a run nor a model: it has no recipe.yaml and lock.json, and no config.json\n"
            "fix: name the folder of a finished run, or one that `save_pretrained` wrote"
        )
    computation = ("dtype", "device", "attn_implementation")  # the recipe still sets these
    others = dict.fromkeys(key for key in Student.model_fields if key not in computation)
    changes = {"student": {**others, "model": target}}
    return recipes.load(recipe, overrides, from_values(changes, TARGET, target), trust=trust)


def remeasure(target: str, checked: ResolvedRecipe, progress: Progress) -> dict[str, Any]:
    """Evaluate `target` with the recipe that `recipe_for_target` returned; nothing is written.

    Returns {format, target, student: its metrics and `probes`, teacher: the same, empty without one}.
    """
    directory = RunDir.open(target) if RunDir.is_run(target) else None
    with checked.marking():
        validate_devices(checked.recipe)
        inputs = resolve_inputs(checked, progress, directory.chat_template_date if directory else None)
        if directory is not None:
            base = inputs.base if directory.model.is_dir() else base_of(directory, checked.consent)
            inputs = replace(inputs, base=base, trains_whole=_trains_whole(directory, checked))
        world = World(checked.recipe.student.device)
        loader = ModelLoader(checked, with_cache(checked, inputs, world, progress, training=False), world)
        progress.phase("loading the models")
        teacher = loader.load_teacher()
        student = _load_student(loader, directory)
        if (taught_by := checked.recipe.taught_by) is not None:
            teacher = teacher_of_saved(student, taught_by, directory)
        progress.phase("evaluating the student and the teacher" if teacher else "evaluating the student")
        ours, theirs = loader.evaluate_both(student, teacher, loader.held_out())
    return {"format": 1, "target": target, "student": ours.values, "teacher": theirs.values if theirs else {}}


def _student_and_adapter(directory: RunDir) -> Mapping[str, Any]:
    """Return the sections `student` and `adapter` of a finished run's recipe, to be merged into another recipe."""
    resolved = directory.resolved
    student = dict.fromkeys(Student.model_fields) | resolved["student"] | {"prepare": None, "adapter_path": None}
    for folder in (directory.model, directory.student):
        if folder.is_dir():
            student |= {"model": str(folder.absolute()), "revision": None}
    return {"student": student, "adapter": resolved["adapter"]}


def _trains_whole(directory: RunDir, checked: ResolvedRecipe) -> bool | None:
    """Return `RunInputs.trains_whole`: whether the base is loaded in float32; None where its adapter decides."""
    if directory.model.is_dir():
        return True
    return None if checked.plugins.implements("load_adapter") and not sets_stored_form(checked) else False


def _load_student(loader: ModelLoader, directory: RunDir | None) -> LanguageModel:
    """Return the model to evaluate, or the trained student of a run, verified."""
    if directory is not None and directory.model.is_dir():
        base = loader.load_trained(directory.model)
        return loader.verify_student(base, head_name(base))
    base = loader.load("student", loader.inputs.base)
    name = head_name(base)
    if directory is not None:
        plugins = adapter_plugins(directory, loader.checked.consent)
        with adapter_errors(directory.adapter):
            base = loader.add_saved_adapter(base, directory.adapter, plugins)
    return loader.verify_student(base, name)
