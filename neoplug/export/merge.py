"""Export of a run as a standalone model: its adapter merged in float32 into the unrounded weights of the base."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from neoplug.environment.dtypes import DTYPES
from neoplug.errors import UsageError, did_you_mean
from neoplug.files import folder_atomically
from neoplug.models.load import load_weights
from neoplug.models.quiet import quiet, quiet_peft
from neoplug.models.reference import ResolvedModel
from neoplug.registry import Plugins, given_classes
from neoplug.registry.consent import Consent
from neoplug.runs.directory import RunDir
from neoplug.runs.saved_student import adapter_errors, adapter_plugins, base_of, has_peft_files, with_adapter
from neoplug.runs.trained_tokenizer import tokenizer_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


def export_model(
    run: str | Path,
    out: str | Path,
    *,
    dtype: str = "float32",
    plugins: Sequence[type] = (),
    trust: Sequence[str | Path] = (),
) -> Path:
    """Write the student of a finished run to the new folder `out`, as a model that plain transformers loads.

    dtype    of the weights: float32, bfloat16 or float16
    plugins  classes that the run's recipe may name, each by its `__name__`, such as those of a notebook
    trust    code that may run, as the option `--trust` of the command line names it

    Returns `out`. Raises UsageError where `out` exists, `run` is not a finished run, its base has changed, or its
    adapter cannot be merged.
    """
    with given_classes(plugins):
        return export(Path(run), Path(out), dtype, trust)


def export(run: Path, out: Path, dtype: str = "float32", trust: Sequence[str | Path] = ()) -> Path:
    """Write the student of the finished run `run` to the new folder `out`, as a model that plain transformers loads.

    dtype  of the weights: float32, bfloat16 or float16
    trust  code that may run, as `--trust` names it: what the recipe of a run names gives no consent

    Returns `out`. Raises UsageError where `out` exists, `run` is not a finished run, or its base has changed.
    """
    directory, consent = open_for_export(run, out, dtype), Consent(trust=trust)
    base = base_of(directory, consent)
    model = standalone_model(directory, base, consent)
    with folder_atomically(out) as draft, quiet():
        model.to(DTYPES[dtype]).save_pretrained(draft)
        tokenizer_of(directory, base).save_pretrained(draft)
    return out


def open_for_export(run: Path, out: Path, dtype: str) -> RunDir:
    """Return the run to export, after a check of all arguments.

    Raises UsageError where `dtype` is unknown, `out` exists, or `run` is not a finished run.
    """
    if dtype not in DTYPES:
        raise UsageError(
            f"`{dtype}` is not a dtype of exports{did_you_mean(dtype, list(DTYPES))}\nfix: {', '.join(DTYPES)}"
        )
    if out.exists() or out.is_symlink():
        raise UsageError(
            f"{out} exists already\nwhy: existing files are not overwritten\nfix: name a folder that does not exist"
        )
    return RunDir.open_finished(run)


def standalone_model(directory: RunDir, base: ResolvedModel, consent: Consent) -> "PreTrainedModel":
    """Return the trained student as a plain model in float32. Raises UsageError where its adapter cannot be merged."""
    if directory.model.is_dir():
        return load_unquantised(replace(base, path=str(directory.model), revision=None, kind="local"))
    plugins = adapter_plugins(directory, consent)
    if not (has_peft_files(directory.adapter) or plugins.implements("merge_adapter")):
        raise UsageError(
            f"{directory.adapter} cannot be merged\n"
            "why: it is not of peft, and its plugin does not implement `merge_adapter`\n"
            "fix: implement the hook in the plugin"
        )
    model = load_unquantised(base)
    with adapter_errors(directory.adapter):
        adapted = with_adapter(model, directory.adapter, plugins)
    return _merged(adapted, plugins)


def load_unquantised(located: ResolvedModel) -> "PreTrainedModel":
    """Return the model in float32 on the CPU, dequantised where its stored weights are quantised."""
    model = load_weights(located, dtype=torch.float32, device_map={"": "cpu"})
    if getattr(model.config, "quantization_config", None) is not None:
        logger.info("dequantising %s", located.source)
        model = model.dequantize(dtype=torch.float32).to(torch.float32)
    return model.eval()


def _merged(model: Any, plugins: Plugins) -> "PreTrainedModel":
    """Return the plain model with the adapter merged, by the adapter's `merge_adapter` hook or by peft."""
    with torch.no_grad(), quiet_peft():
        if plugins.implements("merge_adapter"):
            return plugins.one("merge_adapter", model=model)
        tied = model.get_base_model().config.tie_word_embeddings
        _untie(model)
        merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
        if tied:
            _tie_again(merged)
        return merged


def _tie_again(model: "PreTrainedModel") -> None:
    """Tie head and embeddings again where they are equal; for some families peft's merge unties them."""
    if torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight):
        model.config.tie_word_embeddings = True
        model.tie_weights()


def _untie(model: Any) -> None:
    """Untie head and embeddings where an adapter changed one: a merge into the shared weight changes both."""
    base = model.get_base_model()
    head, embeddings = base.get_output_embeddings(), base.get_input_embeddings()
    head_layer, embedding_layer = (getattr(part, "base_layer", part) for part in (head, embeddings))
    adapted = head_layer is not head or embedding_layer is not embeddings
    if not adapted or head_layer.weight is not embedding_layer.weight:
        return
    head_layer.weight = torch.nn.Parameter(head_layer.weight.detach().clone())
    for config in (base.config, base.config.get_text_config()):
        config.tie_word_embeddings = False
    logger.info("the adapter changed only the head or only the embeddings, so they are not tied in the exported model")
