"""Preparation of students by `prepare_student` plugins, in float32 on the CPU; the result is a cached model."""

import inspect
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from neoplug.environment.info import version_of
from neoplug.errors import PluginError, Problem, RecipeError
from neoplug.files import cache_root, content_hash, lock, sha256_of, write_atomically
from neoplug.files.contents import intact, recorded_folder
from neoplug.models.load import load_config, load_tokenizer, load_weights
from neoplug.models.quiet import quiet
from neoplug.models.reference import RECORD, ResolvedModel
from neoplug.registry import source_of
from neoplug.seeds import generator

if TYPE_CHECKING:
    from neoplug.data.batch import Batch
    from neoplug.recipe import ResolvedRecipe

HOOK = "prepare_student"
STUDENT = ("student", "model")
Factory = Callable[[], "Iterable[Batch]"]


def prepare(
    located: ResolvedModel, checked: "ResolvedRecipe", batches_factory: Factory | None, fingerprint: str
) -> ResolvedModel:
    """Return the student as the recipe's `prepare_student` plugins change it; `located` where there are none.

    batches_factory  returns the training micro-batches in the recipe's order; called once for each plugin
    fingerprint      of the tokenised data

    The cache key contains the seed if a plugin drew from `rng`; seed and data if one read batches; else neither.
    """
    if not checked.plugins.implements(HOOK):
        return located
    folders = _folders(located, checked, fingerprint)
    with lock(folders["nothing"]):
        cached = [folder for folder in folders.values() if intact(folder, "the student is prepared again")]
        folder = cached[0] if cached else _make(located, checked, batches_factory, folders)
    return replace(located, path=str(folder), revision=None, kind="prepared")


def _folders(located: ResolvedModel, checked: "ResolvedRecipe", fingerprint: str) -> dict[str, Path]:
    """Return the cache folder for each case of what the student depends on besides its model and plugins.

    The keys are "nothing", "seed" and "batches" (seed and batches).
    """
    train = checked.recipe.train
    versions = {name: version_of(name) for name in ("torch", "transformers")}
    plugins: dict[str, Any] = {"model": located.identity, "plugins": _plugins(checked), "versions": versions}
    seed = plugins | {"seed": checked.recipe.seed}
    weights = [(name, part.weight) for name, part in checked.recipe.data.parts.items() if part.weight is not None]
    order = [train.micro_batch, train.gradient_accumulation_steps, *weights]
    keys = {"nothing": plugins, "seed": seed, "batches": seed | {"data": fingerprint, "sizes": order}}
    return {name: cache_root() / "students" / content_hash({"format": 2, **key}) for name, key in keys.items()}


class _RecordedBatches:
    """The batches for one plugin; `drawn` is True once the plugin has iterated over them."""

    def __init__(self, factory: Factory) -> None:
        self.factory, self.drawn = factory, False

    def __iter__(self) -> Iterator["Batch"]:
        self.drawn = True
        return iter(self.factory())


def _make(
    located: ResolvedModel, checked: "ResolvedRecipe", batches_factory: Factory | None, folders: dict[str, Path]
) -> Path:
    """Run the plugins on the student, and store it in that of `folders` which matches what they used; return it."""
    load_config(located, STUDENT)
    model = load_weights(located, dtype=torch.float32, device_map={"": "cpu"})
    model.eval().requires_grad_(False)
    depends_on = "nothing"
    for name, function in checked.plugins.functions(HOOK).items():
        batches = _RecordedBatches(batches_factory) if batches_factory else None
        rng = generator(checked.recipe.seed, name)
        before = rng.get_state()
        _call(function, name, model=model, batches=batches, rng=rng)
        if batches is not None and batches.drawn:
            depends_on = "batches"
        elif depends_on == "nothing" and not torch.equal(before, rng.get_state()):
            depends_on = "seed"
    folder = folders[depends_on]
    with recorded_folder(folder) as target, quiet():
        model.save_pretrained(target)
        load_tokenizer(located, STUDENT).save_pretrained(target)
        record = {"format": 1, "source": located.source, "sha256": folder.name, "plugins": _plugins(checked)}
        write_atomically(target / RECORD, json.dumps(record, indent=2) + "\n")
    return folder


def _call(function: Callable[..., Any], name: str, **arguments: Any) -> None:
    """Call a plugin's `prepare_student`. Raises RecipeError where the plugin raised ValueError."""
    try:
        function(**arguments)
    except PluginError as error:
        if isinstance(error.__cause__, ValueError):  # an option does not fit the model
            raise RecipeError([Problem(str(error.__cause__), path=("student", "prepare", name))]) from error
        raise


def _plugins(checked: "ResolvedRecipe") -> dict[str, Any]:
    """Return what identifies each plugin: class, options, version and source hash, so that edits change the key."""
    plugins = checked.plugins.instances()
    versions = {
        id(checked.plugins.section(section).get(name)): entry.version
        for (section, name), entry in checked.entries.items()
    }
    return {
        name: {
            "class": type(plugins[name]).__qualname__,
            "options": {field.name: repr(getattr(plugins[name], field.name)) for field in fields(plugins[name])},
            "version": versions.get(id(plugins[name]), ""),
            "source": _source_hash(type(plugins[name])),
        }
        for name in checked.plugins.implements(HOOK)
    }


def _source_hash(cls: type) -> str:
    """Return the hash of a plugin's file, or of all files of its package, since it may import them.

    Of a class without a file, as of a notebook, it is the hash of its own text.
    """
    try:
        file = Path(inspect.getfile(cls))
        files = sorted(file.parent.glob("*.py")) if (file.parent / "__init__.py").exists() else [file]
        return content_hash([sha256_of(file) for file in files])
    except (OSError, TypeError):
        return content_hash(source_of(cls))
