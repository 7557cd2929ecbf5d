"""Comparison of a student with the one that is loaded from its saved files, by their logits on held-out text.

It is made before the first step, on moved weights (`save_dry_run`), and at the end of a run, before it is completed.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from neoplug.data.batch import Document, collate
from neoplug.errors import NeoplugError, RunError
from neoplug.models.language_model import LanguageModel
from neoplug.models.quiet import quiet_peft
from neoplug.models.reference import ResolvedModel
from neoplug.models.switched import evaluating
from neoplug.registry import Plugins
from neoplug.runs.directory import RunDir
from neoplug.runs.model_loader import ModelLoader

logger = logging.getLogger(__name__)

# Largest difference of logits, relative to the largest: rounding of the frozen weights that an adapter changes.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-1, torch.bfloat16: 2e-1}
TOKENS = 24  # of each document


@dataclass(frozen=True, eq=False)
class Excerpt:
    """The first tokens of the first batch of held-out documents, to compare models on.

    inputs    of the student, in the padded layout
    autocast  the student's autocast dtype; None: no autocast
    """

    inputs: dict[str, Any]
    autocast: torch.dtype | None

    @classmethod
    def of(cls, student: LanguageModel, loader: ModelLoader) -> "Excerpt":
        """Return the excerpt of a run's held-out documents for its student."""
        size = loader.checked.recipe.evaluate.per_device_eval_batch_size
        texts = [document.input_ids[:TOKENS] for document in loader.inputs.corpus.held_out[:size]]
        batch = collate([Document(ids, np.ones(len(ids), dtype=bool), row=0) for ids in texts]).to(student.device)
        return cls(batch.layout("padded", student.pad_token_id)[0], student.autocast)

    def logits(self, module: nn.Module) -> Tensor:
        """Return a model's float32 logits of all T tokens, [T, V], computed in evaluation mode."""
        present = self.inputs["attention_mask"].bool()  # [B, L]
        with evaluating(module), torch.autocast(present.device.type, self.autocast, enabled=self.autocast is not None):
            logits: Tensor = module(**self.inputs).logits
        return logits[:, -present.shape[1] :][present].float()  # virtual tokens add columns before the text


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))


def difference_of_saved(folder: Path, loader: ModelLoader, excerpt: Excerpt, expected: Tensor) -> float | None:
    """Return by how much the logits of the student in `folder` differ from the expected ones, relative to the largest.

    folder  with adapter/ and perhaps its base, student/; or with model/

    None where there is no memory for it.
    """
    try:
        with quiet_peft():
            found = excerpt.logits(_load(RunDir(folder), loader))
    except torch.OutOfMemoryError:
        logger.warning("the student was saved, but not loaded and compared: there is no memory for another copy")
        return None
    difference = relative_difference(found, expected)
    logger.debug("saved and loaded, the student's logits differ by %.2g of the largest", difference)
    return difference


def _load(saved: RunDir, loader: ModelLoader) -> nn.Module:
    if saved.model.is_dir():
        model: nn.Module = loader.load_trained(saved.model)
        return model
    base = loader.inputs.base
    if saved.student.is_dir():
        base = ResolvedModel(str(saved.student), None, base.source, "prepared", base.trust_remote_code)
    plugins = _without_state(loader.checked.plugins.section("adapter"))
    return loader.add_saved_adapter(loader.load("student", base), saved.adapter, plugins)


def _without_state(adapter: Mapping[str, Any]) -> Plugins:
    """Return the plugins of the section `adapter`, made again: loading a copy must not change those that train."""
    return Plugins({"adapter": {name: replace(plugin) for name, plugin in adapter.items()}})


@contextmanager
def saving_errors(what: Literal["saved", "loaded"], fix: str) -> Iterator[None]:
    """Raise RunError in place of an exception of libraries: the student cannot be saved, or not be loaded."""
    try:
        yield
    except NeoplugError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise RunError(f"the student cannot be {what}\nwhy: {why}\nfix: {fix}") from error


def validate_saved_student(directory: RunDir, loader: ModelLoader, excerpt: Excerpt, expected: Tensor) -> None:
    """Load the student of a run from its files, on the main process, and compare its logits with the trained one's.

    expected  [T, V], at the end of training

    Raises:
        RunError: the files cannot be loaded, or hold another student.
    """
    resume = "then go on with --resume, which saves the trained weights of the last checkpoint again"
    with saving_errors("loaded", f"correct the adapter's plugin or the installation, {resume}"):
        difference = difference_of_saved(directory.path, loader, excerpt, expected)
    tolerance = TOLERANCE[loader.dtype("student")]
    if difference is None or difference <= tolerance:
        return
    (name,) = loader.checked.plugins.implements("add_adapter")
    folder = directory.model if directory.model.is_dir() else directory.adapter
    raise RunError(
        f"the student in {folder} is not the one that was measured: loaded from its files, its logits differ by "
        f"{difference:.2g} of the largest (at most {tolerance:.2g})\n"
        f"why: `{name}` saves other weights than it trains, or its files are loaded otherwise than they were written\n"
        f"fix: correct its `save_adapter` and `load_adapter`, {resume}; the files are kept"
    )


def on_main(loader: ModelLoader, check: Callable[[], None]) -> None:
    """Call `check` on the main process; what fails there ends the run on every rank."""
    failure = None
    if loader.world.is_main:
        try:
            check()
        except NeoplugError as error:
            failure = error
    if message := loader.world.broadcast(failure and str(failure)):
        raise failure or RunError(message)
