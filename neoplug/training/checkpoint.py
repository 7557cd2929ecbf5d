"""Save and resume. A checkpoint is a folder, renamed into place when it is whole; resumed runs repeat bit for bit.

    trainable.safetensors   trainable parameters
    training.pt             the optimizer and the schedule
    plugins-RANK.pt         what the plugins of each rank remember
    state.json              the step, and what the session measured so far
    and what plugins write  (`on_save`)

Random numbers and the order of the data are functions of (seed, step), so neither needs a place in a checkpoint.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from neoplug.errors import RunError, blaming
from neoplug.files import folder_atomically
from neoplug.registry import Plugins

logger = logging.getLogger(__name__)

FORMAT = 1


def save(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler,
    plugins: Plugins,
    remembered: Sequence[bytes],
    state: dict[str, Any],
) -> Path:
    """Write `folder/step-N`; `remembered` is what `pack` gave on each rank, in their order. `state` becomes JSON."""
    path = at(folder, step)
    if path.exists():
        return path
    with folder_atomically(path) as draft:
        save_file(_trained(model), draft / "trainable.safetensors")
        torch.save({"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}, draft / "training.pt")
        for rank, packed in enumerate(remembered):
            (draft / f"plugins-{rank}.pt").write_bytes(packed)
        plugins.each("on_save", model=model, path=draft)
        (draft / "state.json").write_text(json.dumps({"format": FORMAT, "step": step, **state}), encoding="utf-8")
    return path


def latest(folder: Path) -> Path | None:
    """Return the newest usable checkpoint, if there is one; a damaged one is skipped with a warning."""
    for path in sorted(folder.glob("step-*"), key=_step, reverse=True):
        try:
            json.loads((path / "state.json").read_text(encoding="utf-8"))
            load_file(path / "trainable.safetensors")
        except (OSError, ValueError, SafetensorError) as error:
            logger.warning("%s is damaged and not used: %s", path, error)
        else:
            return path
    return None


def load(
    path: Path, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler, plugins: Plugins, rank: int = 0
) -> None:
    """Put a checkpoint back in place; the plugins get what those of their own rank remembered.

    Raises:
        RunError: the checkpoint holds other parameters than the model trains.
    """
    restore(path, model, plugins, rank)
    moving = torch.load(path / "training.pt", map_location="cpu", weights_only=True)
    optimizer.load_state_dict(moving["optimizer"])
    schedule.load_state_dict(moving["schedule"])


def restore(path: Path, model: nn.Module, plugins: Plugins, rank: int = 0) -> None:
    """Restore trainable parameters and plugin states, but no optimizer: to evaluate or save the model as it was.

    Raises:
        RunError: the checkpoint holds other parameters than the model trains.
    """
    stored, present = load_file(path / "trainable.safetensors"), _trained(model)
    if stored.keys() != present.keys():
        odd = sorted(stored.keys() ^ present.keys())
        raise RunError(f"{path} does not fit the model: {len(odd)} names differ, as {odd[0]}")
    with torch.no_grad():
        for name, tensor in present.items():
            tensor.copy_(stored[name])
    remembered = torch.load(path / f"plugins-{rank}.pt", map_location="cpu", weights_only=True)
    present_plugins = plugins.everyone()
    for name, state in remembered.items():
        with blaming(name, "load_state_dict"):
            present_plugins[as_named_now(name, list(present_plugins))].load_state_dict(state)


def pack(plugins: Plugins) -> bytes:
    """Return what the plugins of this rank remember, as torch.save writes it.

    Raises:
        RunError: a state_dict holds what no checkpoint could give back.
    """
    found = {}
    for name, plugin in plugins.everyone().items():
        if hasattr(plugin, "state_dict"):
            with blaming(name, "state_dict"):
                found[name] = plugin.state_dict()
            _prove_loadable(name, _saved(found[name]))
    return _saved(found)


def read_state(path: Path) -> dict[str, Any]:
    """Return what `save` was given as `state`, and the step.

    Raises:
        RunError: the checkpoint was written in another format.
    """
    state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if state["format"] != FORMAT:
        raise RunError(f"{path} has format {state['format']}; this neoplug reads format {FORMAT}")
    return state


def at(folder: Path, step: int) -> Path:
    """Return the path of a step's checkpoint."""
    return folder / f"step-{step}"


def as_named_now(name: str, names: list[str]) -> str:
    """Return how the recipe names a plugin now: the resolved recipe writes the whole path of a file."""
    alike = [other for other in names if other.rpartition("/")[2] == name.rpartition("/")[2]]
    return alike[0] if name not in names and len(alike) == 1 else name


def prune(folder: Path, limit: int | None, best: int | None = None) -> None:
    """Keep the newest `limit` checkpoints, and that of step `best`."""
    found = sorted(folder.glob("step-*"), key=_step)
    for path in found[:-limit] if limit else []:
        if _step(path) != best:
            shutil.rmtree(path)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """Return what a run changes: trainable parameters, and buffers that a state dict keeps."""
    buffers = model.state_dict().keys() & dict(model.named_buffers()).keys()
    changed: dict[str, Tensor] = {name: found for name, found in model.named_parameters() if found.requires_grad}
    changed |= {name: buffer for name, buffer in model.named_buffers() if name in buffers}
    return {name: tensor.detach().contiguous() for name, tensor in changed.items()}


def _saved(state: Any) -> bytes:
    buffer = BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _prove_loadable(name: str, packed: bytes) -> None:
    """Refuse now what a resume could not read: nothing but plain data is unpickled there."""
    try:
        torch.load(BytesIO(packed), weights_only=True)
    except UnpicklingError as error:
        raise RunError(
            f"the state_dict of `{name}` cannot be read back: {str(error).splitlines()[0]}\n"
            "why: a checkpoint holds plain data, so that loading one runs no code\n"
            "fix: return tensors, numbers, text, lists and maps"
        ) from error
