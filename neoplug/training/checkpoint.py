"""Checkpoints: each a folder that is written atomically, from which a run resumes bit for bit on as many ranks.

    trainable.safetensors   trainable parameters and persistent buffers
    average.safetensors     the average of the trainable parameters, where it is the teacher
    training.pt             the optimizer and the schedule
    plugins-RANK.pt         the state dicts of the plugins of each rank
    state.json              the step, and what the run has measured so far
    and files of plugins    (`on_save`)
    contents.json           sizes and hashes of these files (`neoplug.files.contents`)

Random numbers and the order of the data are functions of (seed, step), so checkpoints contain neither.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from pickle import PicklingError, UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from neoplug.answers.plain_values import describe
from neoplug.distributed.sharding import (
    part_like,
    part_of_optimizer_state,
    reshard,
    whole_optimizer_state,
    whole_tensors,
)
from neoplug.errors import AnswerError, DamageError, RunError, plugin_errors
from neoplug.files import discarded_folder, read_json
from neoplug.files.contents import damage, recorded_folder
from neoplug.registry import Plugins
from neoplug.teachers.itself import WeightAverage

logger = logging.getLogger(__name__)

FORMAT = 1
PLAIN = (type(None), bool, int, float, complex, str, bytes)  # types of values in a state dict, besides tensors
TRAINABLE, AVERAGE = "trainable.safetensors", "average.safetensors"


def save(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler,
    plugins: Plugins,
    plugin_states: Sequence[bytes],
    state: dict[str, Any],
    average: WeightAverage | None = None,
    *,
    writes: bool = True,
) -> Path:
    """Write `folder/step-N` and return it; `plugin_states` are the results of `pack` by rank, `state` becomes JSON.

    Checkpoints of this and later steps, which a resumed run skipped because they are damaged, are removed.

    writes  whether this process writes the files; the others give it their parts of sharded weights
    """
    path = at(folder, step)
    trained = whole_tensors(_trained_tensors(model), keep=writes)
    training = {"optimizer": whole_optimizer_state(optimizer, keep=writes)}
    if not writes:
        return path
    for damaged in folder.glob("step-*"):
        if _step(damaged) >= step:  # `latest` skipped it, so a resumed run repeats its steps
            shutil.rmtree(damaged)
    with recorded_folder(path) as draft:
        save_file(trained, draft / TRAINABLE)
        if average is not None:
            save_file(average.values, draft / AVERAGE)
        torch.save(training | {"schedule": schedule.state_dict()}, draft / "training.pt")
        for rank, packed in enumerate(plugin_states):
            (draft / f"plugins-{rank}.pt").write_bytes(packed)
        plugins.each("on_save", model=model, path=draft)
        (draft / "state.json").write_text(json.dumps({"format": FORMAT, "step": step, **state}), encoding="utf-8")
    return path


def try_plugins(folder: Path, model: nn.Module, plugins: Plugins, *, writes: bool) -> None:
    """Call what a save and a resume call of plugins, with files in a folder that is removed.

    Called before the first step, so that a plugin that cannot be saved fails before anything is trained. Its state is
    afterwards the one before.

    writes  whether this process writes checkpoints
    """
    packed = pack(plugins)
    if writes and plugins.implements("on_save"):
        with discarded_folder(at(folder, 0)) as draft:
            plugins.each("on_save", model=model, path=draft)
    _load_states(BytesIO(packed), plugins)


def latest(folder: Path, *, with_best: bool = False) -> Path | None:
    """Return the newest undamaged checkpoint, None where there are no checkpoints.

    with_best  whether the best checkpoint so far, which a checkpoint's state names, must be undamaged too

    Those that are skipped because they are damaged are named in a warning, with the step that the run goes on from.

    Raises:
        DamageError: all checkpoints are damaged.
    """
    damages: list[str] = []
    for path in sorted(folder.glob("step-*"), key=_step, reverse=True):
        found = damage(path) or (_damage_of_best(path) if with_best else "")
        if not found:
            if damages:
                logger.warning("damaged: %s; the run goes on from step %d", "; ".join(damages), _step(path))
            return path
        damages.append(f"{path.name}/{found}")
    if damages:
        fix = f"restore one; or remove {folder}, and the run begins again at step 0 with --resume"
        raise DamageError(folder, f"has no undamaged checkpoint: {'; '.join(damages)}", fix)
    return None


def _damage_of_best(path: Path) -> str:
    """Return what is wrong with the best checkpoint that a checkpoint's state names; empty if nothing is."""
    best = (read_state(path).get("best") or {}).get("step")
    found = "" if best is None else damage(at(path.parent, best))
    return f"state.json names step {best} as the best: {found}" if found else ""


def load(
    path: Path, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler, plugins: Plugins, rank: int = 0,
    average: WeightAverage | None = None,
) -> None:  # fmt: skip
    """Load a checkpoint into model, average, optimizer and schedule, and the plugin states of `rank` into the plugins.

    Of a checkpoint of N ranks, a rank from N on loads the states of rank modulo N.

    Raises:
        RunError: the checkpoint holds other parameters than the model trains.
    """
    restore(path, model, plugins, rank, average)
    training = torch.load(path / "training.pt", map_location="cpu", weights_only=True)
    optimizer.load_state_dict(part_of_optimizer_state(training["optimizer"], optimizer))
    schedule.load_state_dict(training["schedule"])


def restore(
    path: Path, model: nn.Module, plugins: Plugins, rank: int = 0, average: WeightAverage | None = None
) -> None:
    """Load only the trainable parameters, their average and the plugin states, to evaluate or save that step's model.

    Raises:
        RunError: the checkpoint holds other parameters than the model trains.
    """
    _load_tensors(path / TRAINABLE, _trained_tensors(model))
    if average is not None:
        _load_tensors(path / AVERAGE, average.values)
    _load_states(_states_of(path)[rank % len(_states_of(path))], plugins)


def differing_states(path: Path) -> list[str]:
    """Return the plugins whose state in a checkpoint is not the same on all ranks, as where each reads other rows."""
    first, *others = (torch.load(file, map_location="cpu", weights_only=True) for file in _states_of(path))
    return [name for name in first if any(_serialised(first[name]) != _serialised(state[name]) for state in others)]


def _states_of(path: Path) -> list[Path]:
    """Return the files of a checkpoint with the states of plugins, by rank."""
    return sorted(path.glob("plugins-*.pt"), key=lambda file: int(file.stem.partition("-")[2]))


def _load_tensors(file: Path, present: dict[str, Tensor]) -> None:
    """Copy the tensors of a file into those of the same names."""
    stored = load_file(file)
    if stored.keys() != present.keys():
        odd = sorted(stored.keys() ^ present.keys())
        raise RunError(f"{file.parent} does not fit the model: {len(odd)} names differ, such as {odd[0]}")
    with torch.no_grad():
        for name, tensor in present.items():
            tensor.copy_(part_like(stored[name], tensor))


def _load_states(file: Path | BytesIO, plugins: Plugins) -> None:
    """Load state dicts that `pack` serialised into the plugins."""
    present = plugins.instances()
    for name, state in torch.load(file, map_location="cpu", weights_only=True).items():
        with plugin_errors(name, "load_state_dict"):
            present[current_name(name, list(present))].load_state_dict(state)


def pack(plugins: Plugins) -> bytes:
    """Return the state dicts of this rank's plugins, serialised by torch.save.

    Raises:
        RunError: a state dict has data that cannot be loaded again.
    """
    states = {}
    for name, plugin in plugins.instances().items():
        if hasattr(plugin, "state_dict"):
            with plugin_errors(name, "state_dict"):
                states[name] = plugin.state_dict()
            _validate_loadable(name, plugin, states[name])
    return _serialised(states)


def read_state(path: Path) -> dict[str, Any]:
    """Return the content of state.json: `format`, `step`, and the `state` that `save` received.

    Raises:
        RunError: the checkpoint was written in another format.
    """
    state = read_json(path / "state.json", f"restore it, or remove {path}")
    if state.get("format") != FORMAT:
        raise RunError(f"{path} has format {state.get('format')}; this neoplug reads format {FORMAT}")
    return state


def steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in a folder."""
    return [_step(path) for path in folder.glob("step-*")]


def at(folder: Path, step: int) -> Path:
    """Return the path of a step's checkpoint."""
    return folder / f"step-{step}"


def current_name(name: str, names: list[str]) -> str:
    """Return the one of `names` that a checkpoint calls `name`: paths of plugin files may be written differently."""
    alike = [other for other in names if other.rpartition("/")[2] == name.rpartition("/")[2]]
    return alike[0] if name not in names and len(alike) == 1 else name


def prune(folder: Path, limit: int | None, best: int | None = None) -> None:
    """Remove all checkpoints but the newest `limit` and that of step `best`; none if `limit` is None."""
    paths = sorted(folder.glob("step-*"), key=_step)
    for path in paths[:-limit] if limit else []:
        if _step(path) != best:
            shutil.rmtree(path)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that training changes: trainable parameters and persistent buffers.

    Of a sharded parameter it is this rank's part.
    """
    reshard(model)
    buffers = model.state_dict().keys() & dict(model.named_buffers()).keys()
    changed: dict[str, Tensor] = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    changed |= {name: buffer for name, buffer in model.named_buffers() if name in buffers}
    return {name: tensor.detach().contiguous() for name, tensor in changed.items()}


def _serialised(state: Any) -> bytes:
    buffer = BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _validate_loadable(name: str, plugin: Any, state: Any) -> None:
    """Refuse a state dict that a resumed run could not load, because only plain data is unpickled."""
    try:
        torch.load(BytesIO(_serialised(state)), weights_only=True)
    except (UnpicklingError, PicklingError, AttributeError, TypeError) as error:
        what = f"the state_dict of `{name}` cannot be read back" + next((f": it has {v}" for v in _others(state)), "")
        why = "a checkpoint holds plain data, so that loading one runs no code"
        fix = "return tensors, numbers, text, lists and maps"
        raise AnswerError(name, "state_dict", what, why, fix, plugin.state_dict) from error


def _others(value: Any, *place: str) -> Iterator[str]:
    """Yield where a state dict has a value that is neither plain nor a tensor, and what it is."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _others(inner, *place, str(key))
    elif isinstance(value, list | tuple | set):
        for number, inner in enumerate(value):
            yield from _others(inner, *place, str(number))
    elif type(value) not in PLAIN and not isinstance(value, Tensor):
        yield f"{describe(value)} at `{'.'.join(place)}`"
