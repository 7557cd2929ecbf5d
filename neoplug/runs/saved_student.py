"""Loading of a run's student from its directory: the base, and the adapter on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from neoplug.errors import NeoplugError, UsageError
from neoplug.models.quiet import quiet_peft
from neoplug.models.reference import CONFIG, WEIGHTS, ResolvedModel, StoredAdapter
from neoplug.models.remote_code import admit
from neoplug.models.resolve import locate
from neoplug.models.stored_adapter import rename_cache_argument
from neoplug.registry import Plugins, build, find
from neoplug.registry.consent import Code, Consent
from neoplug.runs.directory import RunDir
from neoplug.runs.run_files import RESTORE
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


def has_peft_files(adapter: Path) -> bool:
    """Return whether the files of an adapter are in peft's format."""
    return (adapter / CONFIG).is_file()


def with_adapter(model: nn.Module, adapter: Path, plugins: Plugins) -> nn.Module:
    """Return the model with the adapter in the folder `adapter`, loaded by the recipe's plugin or by peft.

    Its trained weights are trainable and in float32.

    Raises:
        UsageError: peft cannot read the folder, and the plugin does not implement `load_adapter`.
    """
    model.requires_grad_(False)
    if plugins.implements("load_adapter"):
        return trainable_as_float32(plugins.one("load_adapter", model=model, path=adapter))
    if has_peft_files(adapter):
        return trainable_as_float32(_with_peft(model, adapter))
    (name,) = plugins.implements("add_adapter")
    raise UsageError(
        f"the adapter in {adapter} cannot be loaded\n"
        f"why: it has no {CONFIG} of peft, and `{name}` does not implement `load_adapter`\n"
        "fix: implement the hook in the plugin"
    )


@contextmanager
def adapter_errors(adapter: Path) -> Iterator[None]:
    """Raise RecipeError in place of an exception of peft or safetensors for files of a run that cannot be loaded."""
    try:
        yield
    except NeoplugError:
        raise
    except Exception as error:  # they raise many types for damaged files
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        what = f"cannot be loaded: {CONFIG} or {' or '.join(WEIGHTS)} is damaged"
        stored = StoredAdapter(adapter.absolute(), str(adapter.absolute()), None, ("adapter",))
        raise stored.error(what, reason, RESTORE) from error


def _with_peft(model: nn.Module, adapter: Path) -> Any:
    """Return the model with an adapter in peft's format.

    Virtual tokens are frozen: peft stores the computed embeddings, not the weights that were trained.
    """
    from peft import PeftConfig, PeftModel

    device = str(next(model.parameters()).device)
    with quiet_peft():
        trains = not PeftConfig.from_pretrained(adapter).is_prompt_learning
        return rename_cache_argument(
            PeftModel.from_pretrained(model, adapter, torch_device=device, is_trainable=trains)
        )


def checkpoint_of(directory: RunDir) -> Path | None:
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
