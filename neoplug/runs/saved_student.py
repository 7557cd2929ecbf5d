"""Loading of a run's student from its directory: the base, and the adapter on it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from neoplug.errors import RunError, UsageError
from neoplug.models.quiet import quiet_peft
from neoplug.models.reference import CONFIG, WEIGHTS, ResolvedModel
from neoplug.models.remote_code import admit
from neoplug.models.resolve import locate
from neoplug.models.stored_adapter import locate_adapter, rename_cache_argument
from neoplug.registry import Plugins, build, find
from neoplug.registry.consent import Code, Consent
from neoplug.runs.directory import RunDir
from neoplug.runs.run_files import RESTORE
from neoplug.seeds import derive, generator
from neoplug.training import checkpoint


def base_of(directory: RunDir, consent: Consent) -> ResolvedModel:
    """Return the base of a run's student: prepared if the run prepared it, without the adapter.

    Raises:
        UsageError: the files of the base have changed since the run; or the user has not consented to Python files of
            the base or of the run.
    """
    base = _base_of(directory)
    for folder in filter(Path.is_dir, (directory.student, directory.model, directory.adapter)):
        admit(replace(base, path=str(folder), revision=None, kind="local"), consent, ())
    if base.path != str(directory.student):
        admit(base, consent, ())
    return base


def _base_of(directory: RunDir) -> ResolvedModel:
    section, locked = directory.resolved["student"], directory.lock["models"]["student"]
    trust = section.get("trust_remote_code", False)
    if directory.student.is_dir():
        return ResolvedModel(str(directory.student), None, section["model"], "prepared", trust)
    revision = locked["revision"] or section.get("revision")
    base = locate(section["model"], revision, ("student", "model"), trust_remote_code=trust)
    found = {"sha256": base.sha256, "weights_sha256": base.weights_sha256}
    for name, digest in found.items():
        if digest != locked.get(name):
            raise UsageError(
                f"{section['model']} is not the model that the run {directory.path} was trained on\n"
                f"why: its files have {name} {digest}, those of the run had {locked.get(name)}\n"
                "fix: restore the files of the run"
            )
    return base


def is_peft(directory: RunDir) -> bool:
    """Return whether the run's adapter is stored in peft's format."""
    return (directory.adapter / "adapter_config.json").is_file()


def with_run_adapter(model: nn.Module, directory: RunDir) -> Any:
    """Return the model with the adapter of a finished run, as `with_peft` does.

    Raises:
        RecipeError: a file is missing or damaged; it is never looked up on the hub.
    """
    stored = locate_adapter(str(directory.adapter.absolute()), ("adapter",))
    try:
        return with_peft(model, stored.folder)
    except Exception as error:  # peft and safetensors raise many types for damaged files
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        what = f"cannot be loaded: {CONFIG} or {' or '.join(WEIGHTS)} is damaged"
        raise stored.error(what, reason, RESTORE) from error


def with_peft(model: nn.Module, adapter: Path) -> Any:
    """Return the model with the adapter in the folder `adapter`, stored in peft's format; its weights are trainable.

    Virtual tokens are frozen: peft stores the computed embeddings, not the weights that were trained.
    """
    from peft import PeftConfig, PeftModel

    device = str(next(model.parameters()).device)
    with quiet_peft():
        trains = not PeftConfig.from_pretrained(adapter).is_prompt_learning
        return rename_cache_argument(
            PeftModel.from_pretrained(model, adapter, torch_device=device, is_trainable=trains)
        )


def with_plugin_adapter(model: nn.Module, directory: RunDir, plugins: Plugins) -> nn.Module:
    """Return the model with its adapter added by the plugin, and its weights loaded from a checkpoint of the run.

    This is for adapters that are not stored in peft's format.

    Raises:
        UsageError: the run has no checkpoint.
        RunError: the checkpoint has a tensor that the model lacks.
    """
    newest = _checkpoint(directory)
    (name,), seed = plugins.implements("add_adapter"), directory.resolved.get("seed", 0)
    if newest is None:
        raise UsageError(f"{directory.checkpoints} is empty\nwhy: only checkpoints hold the weights of `{name}`")
    torch.manual_seed(derive(seed, name))
    steps = checkpoint.read_state(newest)["step"]
    model.requires_grad_(False)
    trained: nn.Module = plugins.one(
        "add_adapter", model=model, batches=None, total_steps=steps, rng=generator(seed, name)
    )
    _copy_into(load_file(newest / "trainable.safetensors"), trainable_as_float32(trained), newest)
    return trained.eval()


def _checkpoint(directory: RunDir) -> Path | None:
    """Return the checkpoint of the run's student: the best one if the recipe says to restore it, else the last."""
    best = directory.result and directory.result.best
    if best and directory.resolved.get("evaluate", {}).get("load_best_model_at_end"):
        return checkpoint.at(directory.checkpoints, best.step)
    return checkpoint.latest(directory.checkpoints)


def trainable_as_float32(model: nn.Module) -> nn.Module:
    """Convert the trainable parameters to float32, in place; return the model."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def _copy_into(stored: dict[str, torch.Tensor], model: nn.Module, where: Path) -> None:
    present = dict(model.named_parameters()) | dict(model.named_buffers())
    if odd := sorted(stored.keys() - present.keys()):
        raise RunError(f"{where} does not fit the model: it has no {odd[0]}")
    with torch.no_grad():
        for name, tensor in stored.items():
            present[name].copy_(tensor)


def adapter_plugins(directory: RunDir, consent: Consent) -> Plugins:
    """Return the adapter plugins of a run's recipe; its other plugins need not be installed.

    Raises RecipeError for a plugin that the user has not consented to: what the recipe of a run names gives no consent.
    """
    named = directory.resolved.get("adapter") or {}
    entries = {name: find(name, directory.path) for name in named}
    for entry in entries.values():
        if not entry.is_installed:
            consent.require(Code.of_plugin(entry))
    return Plugins({"adapter": {name: build(entry.load(), named[name] or {}) for name, entry in entries.items()}})
