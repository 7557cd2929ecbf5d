"""The plan of a run: its steps, sizes, memory and disk, from models without weights and from the tokenised data.

Everything under "memory_bytes", "resident_bytes" and "disk_bytes" is for one process; under `train.shard` it is one of
WORLD_SIZE processes, the variable that a launcher sets.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from neoplug.data.encode.differences import DIFFERENCE
from neoplug.environment.info import hardware
from neoplug.runs.inputs import find_models, resolve_text, validate_inputs
from neoplug.runs.match_size import match
from neoplug.runs.micro_batch import AUTO, chosen_sizes, largest_micro_batch, room_of, with_chosen
from neoplug.runs.planned_memory import (
    AT_A_TIME,
    Memory,
    add_part,
    foretold_memory,
    longest_batch,
    quick_memory,
)
from neoplug.runs.preflight import (
    adapt_skeleton,
    validate_devices,
    validate_room_for_virtual_tokens,
)
from neoplug.runs.progress import Silent
from neoplug.runs.sharded_memory import shares_of_layers
from neoplug.runs.skeletons import FLOAT32, Sizes, Skeleton, load_skeleton, trained_sizes
from neoplug.runs.steps import count_steps, make_sampler
from neoplug.runs.teacher_cost import CacheCost, estimate_cost, held_out_cost

if TYPE_CHECKING:
    from neoplug.data import Corpus
    from neoplug.hookspecs import Role
    from neoplug.models.vocabulary import Vocabulary
    from neoplug.recipe import Recipe, ResolvedRecipe
    from neoplug.runs.inputs import RunInputs

logger = logging.getLogger(__name__)

MANY_EPOCHS = 1000  # more are reported as a probable mistake


def plan(checked: ResolvedRecipe, wanted: int | None = None, *, quick: bool = False) -> dict[str, Any]:
    """Return the plan of a run of the recipe as plain data for JSON, without loading weights.

    wanted  trainable parameters to match the adapter's size to; the rest of the plan is of the unmodified recipe
    quick   whether memory is estimated by a formula, in place of a step on shapes (`runs.fake_step`)

    Keys: name, recipe (resolved), origin (dotted key -> place), plugins (section, name, package, version, target),
    models (role -> source, revision, adapter, device, dtype, parameters, bytes), parameters (trainable, total),
    data (counts), steps, tokens_per_step, memory_bytes (of tensors), resident_bytes (of the process in main memory),
    disk_bytes, warnings (lines on what the teacher's tokenizer does differently, what exceeds this machine, what is
    probably a mistake, and why memory is estimated where no step runs on shapes); with `wanted`, match (see
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
    checked = _with_chosen_batch(checked, inputs, skeletons, quick)
    recipe = checked.recipe
    shares = shares_of_layers(checked, skeletons)
    run = _data_and_steps(checked, corpus)
    matched = match(checked, student.skeleton, run["steps"], wanted).as_dict() if wanted is not None else None
    trained = adapt_skeleton(checked, student.skeleton, run["steps"], student.located)
    validate_room_for_virtual_tokens(recipe, corpus, student.located, trained)
    sizes = trained_sizes(checked, trained)
    stored = round(AT_A_TIME * longest_batch(recipe.train, corpus) * cache.decoded) if cache else 0
    memory = quick_memory(checked, skeletons, sizes, run["data"]["longest_row"], stored, shares)
    notes: list[str] = []
    if not quick:
        memory, notes = foretold_memory(memory, checked, located, inputs.vocabulary, corpus)
    planned = {
        "name": checked.name,
        "recipe": checked.resolved(),
        "origin": {".".join(map(str, path)): place for path, place in checked.origin.items()},
        "plugins": _plugins(checked),
        "models": {role: model.facts() for role, model in skeletons.items()},
        "parameters": {"trainable": sizes.trainable, "total": sizes.total},
        **run,
        "memory_bytes": memory.parts,
        "resident_bytes": memory.resident,
        "disk_bytes": _disk_bytes(checked.recipe, student, sizes, run["steps"]),
    }
    if cache is not None and not checked.plugins.implements("cache_folder"):
        add_part(planned["disk_bytes"], "teacher_cache", _cache_bytes(cache, skeletons["teacher"], inputs, run))
    warnings = [
        *(entry.note for _, entry in sorted(checked.entries.items()) if entry.note),
        *map(DIFFERENCE.format, inputs.differences),
        *notes,
        *_warnings(planned, memory, Path(recipe.output_dir or "runs").absolute()),
    ]
    return planned | {"warnings": warnings} | ({"match": matched} if matched else {})


def _with_chosen_batch(
    checked: ResolvedRecipe, inputs: RunInputs, skeletons: Mapping[Role, Skeleton], quick: bool
) -> ResolvedRecipe:
    """Return the recipe with the micro-batch that a run on this machine would take for `auto`."""
    device = torch.device(skeletons["student"].device)
    if not quick:
        return with_chosen(checked, chosen_sizes(checked, inputs, device))
    if checked.recipe.train.per_device_train_batch_size != AUTO:
        return checked
    trained = adapt_skeleton(checked, deepcopy(skeletons["student"].skeleton), 1000, inputs.student)
    sizes_of, longest = trained_sizes(checked, trained), int(inputs.corpus.row_lengths.max())
    return largest_micro_batch(
        checked, lambda one: quick_memory(one, skeletons, sizes_of, longest).on_device, room_of(device)
    )


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


def _warnings(planned: Mapping[str, Any], memory: Memory, output: Path) -> Iterator[str]:
    """Yield a warning for each resource that this machine lacks, and for each setting that is probably a mistake."""
    device = planned["models"]["student"]["device"]
    needed = memory.on_device
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


def _plugins(checked: ResolvedRecipe) -> list[dict[str, Any]]:
    return [
        {"section": section, "name": name, "package": entry.package, "version": entry.version, "target": entry.target}
        for (section, name), entry in sorted(checked.entries.items())
    ]


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


def _disk_bytes(recipe: Recipe, student: Skeleton, sizes: Sizes, steps: int) -> dict[str, int]:
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
