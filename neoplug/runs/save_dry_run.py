"""Dry run of saving the student before the first step: save, load into another copy of the base, compare the logits.

Most adapters start without an effect, so the trainable weights are moved by seeded noise first, and restored bit for
bit afterwards. Only the files of adapters are tried: a model that is trained whole is saved by transformers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from neoplug.errors import Problem, RecipeError
from neoplug.files import discarded_folder
from neoplug.models.language_model import LanguageModel
from neoplug.registry import path_of
from neoplug.runs.artifacts import save_adapter, save_changed_base, whole_weights
from neoplug.runs.model_loader import ModelLoader
from neoplug.runs.saved_comparison import (
    TOLERANCE,
    Excerpt,
    difference_of_saved,
    relative_difference,
    saving_errors,
)
from neoplug.runs.saved_form import is_peft
from neoplug.seeds import derive, generator

EFFECT = 4  # the noise changes the logits by this multiple of the tolerance
NOISE = (0.03, 0.1, 0.3, 1.0)  # of each weight, relative to its size; the first with that effect
FIX = "change the options of the adapter, or correct its plugin; this was tried before the first step"


def dry_run_save(student: LanguageModel, loader: ModelLoader, folder: Path) -> None:
    """Save the student's adapter to a temporary folder in `folder`, load it, and compare the logits.

    Raises:
        RecipeError: the saved adapter is another than the trained one.
        RunError: it cannot be saved or loaded; a plugin's failure is a PluginError.
    """
    module, plugins = student.module, loader.checked.plugins
    if not is_peft(module) and not plugins.implements("save_adapter"):
        return
    cuda, seed = range(torch.cuda.device_count()), loader.checked.recipe.seed
    with torch.random.fork_rng(devices=cuda), discarded_folder(folder / "dry-run") as tried:
        torch.manual_seed(derive(seed, "dry run of saving"))
        excerpt, tolerance = Excerpt.of(student, loader), TOLERANCE[loader.dtype("student")]
        with moved(module, excerpt, seed, tolerance) as expected, saving_errors("saved", FIX):
            _save(module, loader, tried)
        with saving_errors("loaded", FIX):
            difference = difference_of_saved(tried, loader, excerpt, expected)
    if difference is not None and not difference <= tolerance:  # true for NaN too
        raise RecipeError([_problem(loader, difference)])


def _problem(loader: ModelLoader, difference: float) -> Problem:
    ((section, name),) = loader.checked.plugins.named("add_adapter")
    return Problem(
        what=f"the adapter that `{name}` trains is not the one that it saves",
        why=f"saved and loaded before the first step, its logits differ by {difference:.2g} of the largest",
        fix="leave out options of its that train weights outside the adapter, or name another adapter",
        path=path_of(section, name),
    )


@contextmanager
def moved(module: nn.Module, excerpt: Excerpt, seed: int, tolerance: float) -> Iterator[Tensor]:
    """Move the trainable weights by noise inside the block, so far that the logits change; yield the new logits.

    The weights are restored bit for bit afterwards.
    """
    trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    originals = {name: weight.detach().clone() for name, weight in trained.items()}
    before = excerpt.logits(module)
    try:
        for scale in NOISE:
            rng = generator(seed, "noise of the dry run of saving")
            for name, weight in trained.items():
                original = originals[name]
                noise = torch.randn(weight.shape, generator=rng).to(weight.device, weight.dtype)
                weight.data.copy_(original + scale * noise * (original.abs().mean() + 0.1))
            after = excerpt.logits(module)
            if relative_difference(after, before) >= EFFECT * tolerance:
                break
        yield after
    finally:
        for name, weight in trained.items():
            weight.data.copy_(originals[name])


@torch.no_grad()
def _save(module: nn.Module, loader: ModelLoader, folder: Path) -> None:
    (folder / "adapter").mkdir()
    if weights := whole_weights(module, loader.checked, keep=True):
        save_changed_base(module, loader.inputs.base, loader.inputs.tokenizer, folder / "student", weights)
    save_adapter(module, loader.checked, folder / "adapter")
