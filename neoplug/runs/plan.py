"""The plan of a run: its steps, sizes, memory and disk, from models on the meta device and from the tokenised data.

Everything under "memory_bytes" and "disk_bytes" is an estimate for one process; under `train.shard` it is one of
WORLD_SIZE processes, the variable that a launcher sets.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from neoplug.data.encode.differences import DIFFERENCE
from neoplug.environment.dtypes import resolve_dtype
from neoplug.environment.info import hardware
from neoplug.models.load import load_meta_model, plugin_kwargs
from neoplug.runs.inputs import find_models, resolve_text, validate_inputs
from neoplug.runs.match_size import match
from neoplug.runs.preflight import (
    adapt_skeleton,
    is_impossible_on_meta,
    prepare_skeleton,
    validate_devices,
    validate_room_for_virtual_tokens,
)
from neoplug.runs.progress import Silent
from neoplug.runs.sharding import per_rank, shares_of_layers
from neoplug.runs.steps import count_steps, make_sampler
from neoplug.runs.teacher_cost import CacheCost, estimate_cost, held_out_cost
from neoplug.training.objective import block_rows
from neoplug.training.optim import make_optimizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from neoplug.data import Corpus
    from neoplug.hookspecs import Role
    from neoplug.models.reference import ResolvedModel
    from neoplug.models.vocabulary import Vocabulary
    from neoplug.recipe import Recipe, ResolvedRecipe, Train
    from neoplug.registry import Plugins
    from neoplug.runs.inputs import RunInputs

logger = logging.getLogger(__name__)

FLOAT32 = 4  # bytes
AT_A_TIME = 2  # micro-batches of a stored teacher's output: one in use, the next read in a thread
MANY_EPOCHS = 1000  # more are reported as a probable mistake
# Numbers that a layer keeps for backward, per token: of its hidden size and of its MLP's (counted on Llama by
# autograd's saved tensors; no attention matrix, which sdpa recomputes). Checkpointing keeps a layer's input.
KEPT_HIDDEN, KEPT_MLP = 9, 4


def plan(checked: ResolvedRecipe, wanted: int | None = None) -> dict[str, Any]:
    """Return the plan of a run of the recipe as plain data for JSON, without loading weights.

    wanted  trainable parameters to match the adapter's size to; the rest of the plan is of the unmodified recipe

    Keys: name, recipe (resolved), origin (dotted key -> place), plugins (section, name, package, version, target),
    models (role -> source, revision, adapter, device, dtype, parameters, bytes), parameters (trainable, total),
    data (counts), steps, tokens_per_step, memory_bytes, disk_bytes, warnings (lines on what the teacher's tokenizer
    does differently, what exceeds this machine, and what is probably a mistake); with `wanted`, match (see
    `neoplug.runs.match_size.Match`).

    Raises:
        RecipeError: devices, models, data or plugins do not fit the recipe.
        UsageError: no size of the adapter comes near `wanted`.
    """
    recipe = checked.recipe
    validate_devices(recipe)
    located = find_models(checked)
    inputs = validate_inputs(checked, resolve_text(checked, located, Silent()))
    corpus = inputs.corpus
    skeletons = {role: load_skeleton(checked, role, model) for role, model in located.items()}
    cache = _cache_cost(checked, skeletons, inputs.vocabulary)
    student = skeletons["student"]
    shares = shares_of_layers(checked, {role: model.skeleton for role, model in skeletons.items()})
    run = _data_and_steps(checked, corpus)
    matched = match(checked, student.skeleton, run["steps"], wanted).as_dict() if wanted is not None else None
    trained = adapt_skeleton(checked, student.skeleton, run["steps"], student.located)
    validate_room_for_virtual_tokens(recipe, corpus, student.located, trained)
    sizes = trained_sizes(checked, trained)
    kept = activations(student, recipe.train, run["data"]["longest_row"])
    planned = {
        "name": checked.name,
        "recipe": checked.resolved(),
        "origin": {".".join(map(str, path)): place for path, place in checked.origin.items()},
        "plugins": _plugins(checked),
        "models": {role: model.facts() for role, model in skeletons.items()},
        "parameters": {"trainable": sizes.trainable, "total": sizes.total},
        **run,
        "memory_bytes": memory_bytes(skeletons, sizes, kept, measured_gradients(checked), recipe.taught_by),
        "disk_bytes": _disk_bytes(checked.recipe, student, sizes, run["steps"]),
    }
    if shares:
        planned["memory_bytes"] = per_rank(planned["memory_bytes"], shares, sizes.whole, recipe.train.shard)
    if cache is not None:
        tokens = run["data"]["longest_row"] * recipe.train.per_device_train_batch_size
        _add(planned["memory_bytes"], "teacher_output", round(AT_A_TIME * tokens * cache.decoded))
        if not checked.plugins.implements("cache_folder"):
            _add(planned["disk_bytes"], "teacher_cache", _cache_bytes(cache, skeletons["teacher"], inputs, run))
    warnings = [
        *(entry.note for _, entry in sorted(checked.entries.items()) if entry.note),
        *map(DIFFERENCE.format, inputs.differences),
        *_warnings(planned, Path(recipe.output_dir or "runs").absolute()),
    ]
    return planned | {"warnings": warnings} | ({"match": matched} if matched else {})


def _cache_cost(checked: ResolvedRecipe, skeletons: dict[Role, Skeleton], vocabulary: Vocabulary) -> CacheCost | None:
    """Return the cost of the teacher's cache, None without one; of the teacher, only the head is then in memory."""
    if checked.recipe.teacher is None or not checked.recipe.teacher.cache:
        return None
    teacher = skeletons["teacher"]
    head: Any = teacher.skeleton.get_output_embeddings()
    held = sum(weight.numel() for weight in head.parameters()) * teacher.dtype.itemsize
    skeletons["teacher"] = replace(teacher, bytes=held)
    return estimate_cost(checked, teacher.config.get_text_config().hidden_size, vocabulary.size)


def _cache_bytes(cost: CacheCost, teacher: Skeleton, inputs: RunInputs, run: Mapping[str, Any]) -> int:
    """Return the bytes of the cache on disk once it has what the run reads."""
    train, held_out = inputs.corpus.report.train, inputs.corpus.report.held_out
    share = min(1.0, run["epochs"])
    exact = held_out_cost(teacher.config.get_text_config().hidden_size)
    training = cost.on_disk(share * train.answer_tokens, share * train.documents)
    return training + exact.on_disk(held_out.answer_tokens, held_out.documents) + teacher.bytes


def _add(parts: dict[str, int], name: str, size: int) -> None:
    """Add a part to sizes in bytes that end with their total."""
    total = parts.pop("total")
    parts |= {name: size, "total": total + size}


def _warnings(planned: Mapping[str, Any], output: Path) -> Iterator[str]:
    """Yield a warning for each resource that this machine lacks, and for each setting that is probably a mistake."""
    device = planned["models"]["student"]["device"]
    elsewhere = [f"{role}_weights" for role, model in planned["models"].items() if model["device"] != device]
    needed = planned["memory_bytes"]["total"] - sum(planned["memory_bytes"].get(part, 0) for part in elsewhere)
    if (room := _memory_of(device)) is not None and needed > room:
        yield f"about {needed / 1e9:,.1f} GB of memory are needed, but {device} has {room / 1e9:,.1f} GB"
    folder = next(path for path in (output, *output.parents) if os.path.isdir(path))  # noqa: PTH112  names of any length
    written, free = planned["disk_bytes"]["total"], shutil.disk_usage(folder).free
    if written > free:
        yield f"about {written / 1e9:,.1f} GB are written, but {free / 1e9:,.1f} GB are free in {folder}"
    if planned["epochs"] > MANY_EPOCHS:
        yield f"each row is seen {planned['epochs']:,.0f} times"
    trainable, total = planned["parameters"]["trainable"], planned["parameters"]["total"]
    if total > trainable > total - trainable:
        yield f"the adapter has {trainable:,} parameters, more than the {total - trainable:,} of the model it adapts"


def _memory_of(device: str) -> int | None:
    """Return the bytes of a device's memory; None where they are unknown."""
    if device == "cpu":
        memory: int | None = hardware()["memory_bytes"]
        return memory
    return int(torch.cuda.get_device_properties(device).total_memory) if device.startswith("cuda") else None


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A model on the meta device, with the device and dtype that its weights are to be loaded with.

    parameters  number of its parameters
    bytes       size of its weights once loaded, quantised or not
    """

    located: ResolvedModel
    device: str
    dtype: torch.dtype
    skeleton: PreTrainedModel
    parameters: int
    bytes: int

    @property
    def config(self) -> PretrainedConfig:
        """The model's configuration."""
        return self.skeleton.config

    def facts(self) -> dict[str, Any]:
        """Return what a plan says of the model."""
        return {
            "source": self.located.source,
            "revision": self.located.revision,
            "adapter": self.located.adapter.source if self.located.adapter else None,
            "device": self.device,
            "dtype": str(self.dtype).removeprefix("torch."),
            "parameters": self.parameters,
            "bytes": self.bytes,
        }


@dataclass(frozen=True)
class _Sizes:
    """Numbers of parameters of the student with its adapter, and the bytes of the optimizer's state."""

    trainable: int
    total: int
    optimizer: int

    @property
    def whole(self) -> bool:
        return self.trainable == self.total


def _plugins(checked: ResolvedRecipe) -> list[dict[str, Any]]:
    return [
        {"section": section, "name": name, "package": entry.package, "version": entry.version, "target": entry.target}
        for (section, name), entry in sorted(checked.entries.items())
    ]


def load_skeleton(checked: ResolvedRecipe, role: Role, located: ResolvedModel) -> Skeleton:
    """Return a model on the meta device, the student as its plugins prepare it."""
    section = getattr(checked.recipe, role)
    device = section.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = resolve_dtype(section.dtype, device)
    skeleton = load_meta_model(located, role, section.attn_implementation)
    if role == "student":
        prepare_skeleton(checked, skeleton)
    parameters = sum(weight.numel() for weight in skeleton.parameters())
    return Skeleton(located, device, dtype, skeleton, parameters, weight_bytes(checked.plugins, role, skeleton, dtype))


def weight_bytes(plugins: Plugins, role: Role, skeleton: PreTrainedModel, dtype: torch.dtype) -> int:
    """Return the bytes of the weights; for a `load` plugin that quantises, transformers' quantiser computes them."""
    kwargs = plugin_kwargs(plugins, role)
    if "quantization_config" not in kwargs:
        return int(sum(weight.numel() for weight in skeleton.parameters()) * dtype.itemsize)
    return _quantised_bytes(deepcopy(skeleton), kwargs["quantization_config"], dtype)


def _quantised_bytes(skeleton: PreTrainedModel, config: Any, dtype: torch.dtype) -> int:
    from transformers.quantizers import AutoHfQuantizer

    quantiser = AutoHfQuantizer.from_config(config)
    skeleton = skeleton.to(dtype)
    quantiser.preprocess_model(skeleton, dtype=dtype, device_map=None)
    return int(
        sum(
            weight.numel() * quantiser.param_element_size(skeleton, name, weight)
            for name, weight in skeleton.named_parameters()
        )
    )


def _data_and_steps(checked: ResolvedRecipe, corpus: Corpus) -> dict[str, Any]:
    """Return the counts of the data, and steps, epochs and tokens of a run in a single process."""
    sampler = make_sampler(checked, corpus, 1)
    steps = count_steps(checked.recipe.train, sampler.steps_per_epoch)
    shares = [(read, read.epoch_rows / read.training_rows) for read in corpus.report.read.values()]
    tokens = sum(read.tokens * share for read, share in shares)  # of an epoch
    scored = sum(read.answer_tokens * share for read, share in shares)
    return {
        "data": {
            "rows": len(corpus.rows),
            "held_out_documents": len(corpus.held_out),
            "tokens": corpus.report.train.tokens,
            "answer_tokens": corpus.report.train.answer_tokens,
            "longest_row": int(corpus.row_lengths.max()),
            "report": corpus.report.as_dict(),
            "lines": corpus.report.lines(),
        },
        "steps": steps,
        "epochs": steps / sampler.steps_per_epoch,
        "tokens": round(tokens * steps / sampler.steps_per_epoch),
        "answer_tokens": round(scored * steps / sampler.steps_per_epoch),
    }


def trained_sizes(checked: ResolvedRecipe, model: torch.nn.Module) -> _Sizes:
    """Return the sizes of a student with its adapter, on the meta device."""
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    return _Sizes(
        trainable=sum(weight.numel() for weight in trainable),
        total=sum(weight.numel() for weight in model.parameters()),
        optimizer=_optimizer_bytes(checked, model, trainable),
    )


def _optimizer_bytes(checked: ResolvedRecipe, model: torch.nn.Module, trainable: list[torch.nn.Parameter]) -> int:
    """Return the bytes of the optimizer's state after a step on the meta device; if it cannot step, those of Adam's."""
    for weight in trainable:
        weight.grad = torch.empty_like(weight)
    try:
        optimizer = make_optimizer(model, checked.plugins, checked.recipe.train.learning_rate)
        optimizer.step()
        states = {id(value): value for state in optimizer.state.values() for value in state.values()}  # some are shared
        return sum(value.numel() * value.element_size() for value in states.values() if isinstance(value, torch.Tensor))
    except Exception as error:
        if not is_impossible_on_meta(error):
            raise
        (name,) = checked.plugins.implements("make_optimizer")
        logger.warning("`%s` cannot step on the meta device (%s): its state is estimated as Adam's", name, error)
        return 2 * FLOAT32 * sum(weight.numel() for weight in trainable)


def activations(student: Skeleton, train: Train, longest_row: int) -> int:
    """Return the bytes that one micro-batch keeps for backward, and a chunk of logits: a rough estimate."""
    text = student.config.get_text_config()
    tokens, hidden, layers = longest_row * train.per_device_train_batch_size, text.hidden_size, text.num_hidden_layers
    layer = KEPT_HIDDEN * hidden + KEPT_MLP * (getattr(text, "intermediate_size", None) or 4 * hidden)
    numbers = layers * hidden + layer if train.gradient_checkpointing else layers * layer
    # A block of the teacher's logits and one of the student's, which their gradient overwrites.
    rows = min(tokens, block_rows(text.vocab_size, torch.device(student.device)))
    logits = rows * text.vocab_size * FLOAT32 * 2
    return int(tokens * numbers * student.dtype.itemsize + logits)


def measured_gradients(checked: ResolvedRecipe) -> int:
    """Return of how many losses a run holds a separate gradient to measure its norm; 0 if it measures none."""
    calibrates = any(weight.calibrate for weight in checked.weights.values())
    if not (calibrates or checked.recipe.train.log_gradient_norms):
        return 0
    return len(checked.weights) + len(checked.references.implements("token_loss"))


def memory_bytes(
    skeletons: Mapping[Role, Skeleton], sizes: _Sizes, activations: int, gradients: int, taught_by: str | None
) -> dict[str, int]:
    """Return the bytes that a run needs, by part, with their total."""
    parts = {f"{role}_weights": model.bytes for role, model in skeletons.items()}
    if sizes.whole:  # the weights themselves are the trainable ones
        del parts["student_weights"]
    trainable = sizes.trainable * FLOAT32
    training = {
        **({"average_weights": trainable} if taught_by == "ema" else {}),
        "gradients": trainable,
        **({"measured_gradients": gradients * trainable} if gradients else {}),
        "optimizer": sizes.optimizer,
        "activations": activations,
    }
    parts |= {"trainable_weights": trainable, **training}
    # The copy of the student that a saved adapter is tried on, with the original trainable weights, precedes training.
    copied = 0 if sizes.whole else parts["student_weights"] + 2 * trainable
    parts["saved_copy"] = max(0, copied - sum(training.values()))
    return parts | {"total": sum(parts.values())}


def _disk_bytes(recipe: Recipe, student: Skeleton, sizes: _Sizes, steps: int) -> dict[str, int]:
    weights = sizes.trainable * FLOAT32
    kept = math.ceil(steps / recipe.train.save_steps)
    if recipe.train.save_total_limit is not None:
        kept = min(kept, recipe.train.save_total_limit)
    if recipe.evaluate.metric_for_best_model is not None:
        kept += 1
    average = weights if recipe.taught_by == "ema" else 0
    parts = {
        "checkpoints": kept * (weights + average + sizes.optimizer),
        "model" if sizes.whole else "adapter": weights,
    }
    if recipe.student.prepare:
        parts["student"] = student.parameters * FLOAT32
    return parts | {"total": sum(parts.values())}
