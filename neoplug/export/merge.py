"""A run becomes a standalone model: its adapter merged in float32 into the stored weights, never into rounded ones."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from neoplug.environment.dtypes import DTYPES
from neoplug.errors import UsageError, did_you_mean
from neoplug.files import folder_atomically
from neoplug.models.load import load_tokenizer, load_weights
from neoplug.models.quiet import quiet, quiet_peft
from neoplug.models.reference import ResolvedModel
from neoplug.registry import Plugins
from neoplug.runs.directory import RunDir
from neoplug.runs.saved_student import adapter_plugins, as_trained, base_of, has_ended, is_peft, with_peft

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger("neoplug")


def export(run: Path, out: Path, dtype: str = "float32") -> Path:
    """Write the student of the finished run `run` to the new folder `out`: a model that plain transformers loads.

    dtype  how the weights are stored: float32, bfloat16 or float16

    Raises UsageError where `out` exists, `run` is no finished run, or its base is not what it was; returns `out`.
    """
    directory = finished(run, out, dtype)
    base = base_of(directory)
    model = standalone(directory, base)
    with folder_atomically(out) as draft, quiet():
        model.to(DTYPES[dtype]).save_pretrained(draft)
        load_tokenizer(base).save_pretrained(draft)
    return out


def finished(run: Path, out: Path, dtype: str) -> RunDir:
    """Return the run that is to be exported.

    Raises UsageError where `dtype` is none, `out` exists, or `run` is no finished run.
    """
    if dtype not in DTYPES:
        raise UsageError(
            f"`{dtype}` is no dtype to export in{did_you_mean(dtype, list(DTYPES))}\nfix: {', '.join(DTYPES)}"
        )
    if out.exists() or out.is_symlink():
        raise UsageError(
            f"{out} exists already\nwhy: nothing is overwritten\nfix: name a folder that does not exist yet"
        )
    directory = RunDir.open(run)
    if not has_ended(directory):
        raise UsageError(
            f"{run} is not finished\nwhy: its student is not what the recipe asked for\n"
            "fix: go on with `neoplug run RECIPE --output RUN --resume`"
        )
    return directory


def standalone(directory: RunDir, base: ResolvedModel) -> "PreTrainedModel":
    """Return the trained student as a plain model in float32. Raises UsageError where its adapter cannot be merged."""
    plugins = adapter_plugins(directory)
    if is_peft(directory):
        return _merged(with_peft(unquantised(base), directory.adapter), plugins)
    if plugins.implements("merge_adapter"):
        return _merged(as_trained(unquantised(base), directory, plugins), plugins)
    if directory.model.is_dir():
        return unquantised(replace(base, path=str(directory.model), revision=None, kind="local"))
    raise UsageError(
        f"{directory.adapter} is in a form of its adapter's own\n"
        "why: peft cannot read it, and the adapter's plugin does not answer `merge_adapter`\n"
        "fix: let the plugin answer it"
    )


def unquantised(located: ResolvedModel) -> "PreTrainedModel":
    """Return the stored model in float32 on the CPU; one whose stored weights are quantised is dequantised."""
    model = load_weights(located, dtype=torch.float32, device_map={"": "cpu"})
    if getattr(model.config, "quantization_config", None) is not None:
        log.info("dequantising %s", located.source)
        model = model.dequantize(dtype=torch.float32).to(torch.float32)
    return model.eval()


def _merged(model: Any, plugins: Plugins) -> "PreTrainedModel":
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
    """Let head and embeddings share a weight again where they were trained as one: peft forgets it in some families."""
    if torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight):
        model.config.tie_word_embeddings = True
        model.tie_weights()


def _untie(model: Any) -> None:
    """Give head and embeddings a weight each where an adapter changed one: merged into a shared one it changes both."""
    bare = model.get_base_model()
    head, embeddings = bare.get_output_embeddings(), bare.get_input_embeddings()
    own, shared = (getattr(part, "base_layer", part) for part in (head, embeddings))  # under an adapter's layer
    if (own is head and shared is embeddings) or own.weight is not shared.weight:
        return
    own.weight = torch.nn.Parameter(own.weight.detach().clone())
    for config in (bare.config, bare.config.get_text_config()):
        config.tie_word_embeddings = False
    log.info("the adapter changed the head or the embeddings alone, so the exported model has a weight for each")
