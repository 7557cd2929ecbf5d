"""A run becomes a standalone model: its adapter merged in float32 into the stored weights, never into rounded ones."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import nn

from neoplug import checkpoint
from neoplug.errors import RunError, UsageError, did_you_mean
from neoplug.files import folder_atomically
from neoplug.models import DTYPES, Located, load_tokenizer, load_weights, locate
from neoplug.models.quiet import quiet
from neoplug.registry import Plugins, build, find
from neoplug.rundir import RunDir
from neoplug.seeds import derive, generator

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger("neoplug")


def export(run: Path, out: Path, dtype: str = "float32") -> Path:
    """Write the student of the finished run `run` to the new folder `out`: a model that plain transformers loads.

    dtype  how the weights are stored: float32, bfloat16 or float16

    Raises UsageError where `out` exists, `run` is no finished run, or its base is not what it was; returns `out`.
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
    if not _has_ended(directory):
        raise UsageError(
            f"{run} is not finished\nwhy: its student is not what the recipe asked for\n"
            "fix: go on with `neoplug run RECIPE --output RUN --resume`"
        )
    base = _base(directory)
    model = _standalone(directory, base)
    with folder_atomically(out) as draft, quiet():
        model.to(DTYPES[dtype]).save_pretrained(draft)
        load_tokenizer(base).save_pretrained(draft)
    return out


def _has_ended(directory: RunDir) -> bool:
    """Say whether the run trained to its end; one that was killed then has all but its last file, the result."""
    if (directory.result or {"status": "completed"})["status"] != "completed":
        return False
    return directory.adapter.is_dir() or directory.model.is_dir()


def _base(directory: RunDir) -> Located:
    """Return the student without its adapter, as the run began with it."""
    section, locked = directory.resolved["student"], directory.lock["models"]["student"]
    if directory.student.is_dir():
        return Located(str(directory.student), None, section["model"], "prepared")
    base = locate(section["model"], locked["revision"] or section.get("revision"), ("student", "model"))
    if base.sha256 != locked["sha256"]:
        raise UsageError(
            f"{section['model']} is not the model that the run {directory.path} was trained on\n"
            f"why: its files have sha256 {base.sha256}, then they had {locked['sha256']}\nfix: put the old files back"
        )
    return base


def _standalone(directory: RunDir, base: Located) -> "PreTrainedModel":
    """Return the trained student as a plain model in float32."""
    plugins = _adapter_plugins(directory)
    if (directory.adapter / "adapter_config.json").is_file():
        return _merged(_with_peft(_unquantised(base), directory.adapter), plugins)
    if plugins.implements("merge_adapter"):
        return _merged(_as_trained(_unquantised(base), directory, plugins), plugins)
    if directory.model.is_dir():
        return _unquantised(Located(str(directory.model), None, str(directory.model), "local"))
    raise UsageError(
        f"{directory.adapter} is in a form of its adapter's own\n"
        "why: peft cannot read it, and the adapter's plugin does not answer `merge_adapter`\n"
        "fix: let the plugin answer it"
    )


def _unquantised(located: Located) -> "PreTrainedModel":
    """Return the stored model in float32 on the CPU; one whose stored weights are quantised is dequantised."""
    model = load_weights(located, dtype=torch.float32, device_map={"": "cpu"})
    if getattr(model.config, "quantization_config", None) is not None:
        log.info("dequantising %s", located.source)
        model = model.dequantize(dtype=torch.float32).to(torch.float32)
    return model.eval()


def _with_peft(model: "PreTrainedModel", adapter: Path) -> Any:
    from peft import PeftModel

    with _quiet_peft():
        return PeftModel.from_pretrained(model, adapter, torch_device="cpu")


def _merged(model: Any, plugins: Plugins) -> "PreTrainedModel":
    with torch.no_grad(), _quiet_peft():
        if plugins.implements("merge_adapter"):
            return plugins.one("merge_adapter", model=model)
        return model.merge_and_unload(safe_merge=True)


def _as_trained(model: "PreTrainedModel", directory: RunDir, plugins: Plugins) -> nn.Module:
    """Add the adapter anew and put the last checkpoint into it: for adapters that only their plugin can read."""
    newest = checkpoint.latest(directory.checkpoints)
    (name,), seed = plugins.implements("add_adapter"), directory.resolved.get("seed", 0)
    if newest is None:
        raise UsageError(
            f"{directory.checkpoints} is empty\nwhy: `{name}` merges what it trained, which only checkpoints hold"
        )
    torch.manual_seed(derive(seed, name))
    steps = checkpoint.read_state(newest)["step"]
    model.requires_grad_(False)
    trained = plugins.one("add_adapter", model=model, batches=None, total_steps=steps, rng=generator(seed, name))
    _put(load_file(newest / "trainable.safetensors"), trained, newest)
    return trained.eval()


def _put(stored: dict[str, torch.Tensor], model: nn.Module, where: Path) -> None:
    present = dict(model.named_parameters()) | dict(model.named_buffers())
    if odd := sorted(stored.keys() - present.keys()):
        raise RunError(f"{where} does not fit the model: it has no {odd[0]}")
    with torch.no_grad():
        for name, tensor in stored.items():
            present[name].copy_(tensor)


def _adapter_plugins(directory: RunDir) -> Plugins:
    """Build the recipe's adapter plugins alone: whatever else it names need not be here any more."""
    named = directory.resolved.get("adapter") or {}
    return Plugins({"adapter": {name: _plugin(name, options, directory.path) for name, options in named.items()}})


def _plugin(name: str, options: dict[str, Any] | None, folder: Path) -> Any:
    return build(find(name, folder).load(), options or {})


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """Hide what peft still asks of transformers under an old name: nothing a user could act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*removed in v6", FutureWarning)
        yield
