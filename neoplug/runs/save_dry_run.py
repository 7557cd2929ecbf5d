"""Dry run of saving the student before the first step: save, load into another copy of the base, compare the logits.

Most adapters start without an effect, so the trainable weights are moved by seeded noise first, and restored bit for
bit afterwards. Only the files of adapters are tried: a model that is trained whole is saved by transformers.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neoplug.data.batch import Document, collate
from neoplug.errors import NeoplugError, Problem, RecipeError, RunError
from neoplug.files import discarded_folder
from neoplug.models.language_model import LanguageModel
from neoplug.models.quiet import quiet_peft
from neoplug.models.reference import ResolvedModel
from neoplug.registry import path_of
from neoplug.runs.artifacts import is_peft, save_adapter, save_changed_base
from neoplug.runs.model_loader import ModelLoader
from neoplug.runs.saved_student import with_peft
from neoplug.seeds import derive, generator

logger = logging.getLogger(__name__)

# Largest difference of logits, relative to the largest: rounding of the frozen weights that an adapter changes.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-1, torch.bfloat16: 2e-1}
EFFECT = 4  # the noise changes the logits by this multiple of the tolerance
NOISE = (0.03, 0.1, 0.3, 1.0)  # of each weight, relative to its size; the first with that effect
TOKENS = 24


def dry_run_save_on_main(student: LanguageModel, loader: ModelLoader, folder: Path) -> None:
    """Call `dry_run_save` on the main process; what fails there ends the run on every rank."""
    failure = None
    if loader.world.is_main:
        try:
            dry_run_save(student, loader, folder)
        except NeoplugError as error:
            failure = error
    if message := loader.world.broadcast(failure and str(failure)):
        raise failure or RunError(message)


def dry_run_save(student: LanguageModel, loader: ModelLoader, folder: Path) -> None:
    """Save the student's adapter to a temporary folder in `folder`, load it, and compare the logits.

    Raises:
        RecipeError: the saved adapter is another than the trained one.
        RunError: it cannot be saved or loaded; a plugin's failure is a PluginError.
    """
    module, plugins = student.module, loader.checked.plugins
    if not is_peft(module) and not plugins.implements("save_adapter"):
        return
    cuda = range(torch.cuda.device_count())
    with (
        torch.random.fork_rng(devices=cuda),
        evaluating(module),
        discarded_folder(folder / "dry-run") as tried,
    ):
        torch.manual_seed(derive(loader.checked.recipe.seed, "dry run of saving"))
        tolerance = TOLERANCE[loader.dtype("student")]
        inputs = _inputs(student, loader)
        with moved(student, inputs, loader.checked.recipe.seed, tolerance) as expected:
            _save(module, loader, tried)
        found = _logits_of_saved(student, loader, tried, inputs)
    if found is None:
        return
    difference = relative_difference(found, expected)
    logger.debug("dry run of saving: the logits differ by %.2g of the largest", difference)
    if not difference <= tolerance:  # false for NaN too
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
def evaluating(module: nn.Module) -> Iterator[None]:
    """Set a module to evaluation mode inside the block, without gradients."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)


@contextmanager
def moved(student: LanguageModel, inputs: dict[str, Any], seed: int, tolerance: float) -> Iterator[Tensor]:
    """Move the trainable weights by noise inside the block, so far that the logits change; yield the new logits.

    The weights are restored bit for bit afterwards.
    """
    trained = {name: weight for name, weight in student.module.named_parameters() if weight.requires_grad}
    originals = {name: weight.detach().clone() for name, weight in trained.items()}
    before = logits_of(student, student.module, inputs)
    try:
        for scale in NOISE:
            rng = generator(seed, "noise of the dry run of saving")
            for name, weight in trained.items():
                original = originals[name]
                noise = torch.randn(weight.shape, generator=rng).to(weight.device, weight.dtype)
                weight.data.copy_(original + scale * noise * (original.abs().mean() + 0.1))
            after = logits_of(student, student.module, inputs)
            if relative_difference(after, before) >= EFFECT * tolerance:
                break
        yield after
    finally:
        for name, weight in trained.items():
            weight.data.copy_(originals[name])


def _inputs(student: LanguageModel, loader: ModelLoader) -> dict[str, Any]:
    """Return the model's inputs for the first tokens of the first held-out document."""
    ids = loader.inputs.corpus.held_out[0].input_ids[:TOKENS]
    batch = collate([Document(ids, np.ones(len(ids), dtype=bool), row=0)]).to(student.device)
    return batch.layout("padded", student.pad_token_id)[0]


def logits_of(student: LanguageModel, module: Any, inputs: dict[str, Any]) -> Tensor:
    """Return the logits of `module`, computed as those of `student`, in float32."""
    with student.autocast_context():
        logits: Tensor = module(**inputs).logits
    return logits.float()


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))


def _save(module: nn.Module, loader: ModelLoader, folder: Path) -> None:
    try:
        (folder / "adapter").mkdir()
        save_changed_base(module, loader.checked, loader.inputs.base, loader.inputs.tokenizer, folder / "student")
        save_adapter(module, loader.checked, folder / "adapter")
    except NeoplugError:
        raise
    except Exception as error:
        why = " ".join(str(error).split())
        raise RunError(
            f"the student cannot be saved: {type(error).__name__}\nwhy: {why}\n"
            "fix: change the options of the adapter; this was tried before the first step, so nothing is lost"
        ) from error


def _logits_of_saved(
    student: LanguageModel, loader: ModelLoader, folder: Path, inputs: dict[str, Any]
) -> Tensor | None:
    """Return the logits of another copy of the base with the saved adapter.

    None where the adapter is not stored in peft's format, or there is no memory for another copy.
    """
    if not (folder / "adapter" / "adapter_config.json").is_file():
        return None
    base, changed = loader.inputs.base, folder / "student"
    if changed.is_dir():
        base = ResolvedModel(str(changed), None, base.source, "prepared", base.trust_remote_code)
    try:
        with quiet_peft():
            copy = with_peft(loader.load("student", base), folder / "adapter").eval()
            return logits_of(student, copy, inputs)
    except torch.OutOfMemoryError:
        logger.warning("saving was tried, but not loading: there is no memory for another copy of the student")
        return None
    except NeoplugError:
        raise
    except Exception as error:
        why = " ".join(str(error).split())
        raise RunError(
            f"the saved student cannot be loaded: {type(error).__name__}\nwhy: {why}\n"
            "fix: change the options of the adapter; this was tried before the first step, so nothing is lost"
        ) from error
