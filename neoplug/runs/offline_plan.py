"""The plan of a run from shipped facts about its models: parameters, memory and FLOPs, without network or data."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from neoplug.data import Corpus
from neoplug.data.batch import Document
from neoplug.models.facts import configured, facts_of
from neoplug.models.vocabulary import Vocabulary
from neoplug.runs.planned_memory import foretold_memory, quick_memory
from neoplug.runs.preflight import adapt_skeleton
from neoplug.runs.sharded_memory import shares_of_layers
from neoplug.runs.skeletons import Skeleton, load_skeleton, trained_sizes

if TYPE_CHECKING:
    from neoplug.hookspecs import Role
    from neoplug.recipe import Model, ResolvedRecipe

UNKNOWN_STEPS = 1000  # for plugins that need a number, where it depends on the data


def offline_plan(checked: ResolvedRecipe, *, quick: bool = False) -> dict[str, Any]:
    """Return the plan of a recipe whose models are in the shipped facts, as plain data for JSON.

    quick  whether memory is estimated by a formula, in place of a step on shapes (`runs.fake_step`)

    Rows are taken to have `max_length` tokens, all of them scored: the numbers are upper bounds.
    Keys: name, models (role -> as in `plan`, with vocabulary, the rows of its head, and tokens, the number of ordinary
    tokens, None where it is unknown), parameters (trainable, total), steps (None where they depend on the data),
    tokens_per_step, memory_bytes, resident_bytes, flops_per_step (role -> count), warnings.

    Raises:
        RecipeError: no facts about a model are shipped, or the recipe does not fit it.
    """
    recipe = checked.recipe
    train, length = recipe.train, recipe.data.max_length
    with ExitStack() as folders:
        sections: dict[Role, Model] = {"student": recipe.student}
        if recipe.teacher is not None and recipe.teacher.model is not None:
            sections["teacher"] = recipe.teacher
        located = {
            role: folders.enter_context(configured(str(section.model), (role, "model")))
            for role, section in sections.items()
        }
        skeletons: dict[Role, Skeleton] = {role: load_skeleton(checked, role, located[role]) for role in sections}
        for model in skeletons.values():
            model.skeleton.set_experts_implementation("batched_mm")  # its shapes do not depend on the routing
        student = skeletons["student"]
        shares = shares_of_layers(checked, {role: model.skeleton for role, model in skeletons.items()})
        trained = adapt_skeleton(checked, student.skeleton, train.max_steps or UNKNOWN_STEPS, student.located)
        sizes = trained_sizes(checked, trained)
        notes: list[str] = []
        memory = quick_memory(checked, skeletons, sizes, length, shares=shares)
        if not quick:
            vocabulary = Vocabulary(min(model.config.get_text_config().vocab_size for model in skeletons.values()))
            corpus = _rows_of(length, train.micro_batch)
            memory, notes = foretold_memory(memory, checked, located, vocabulary, corpus)
        rows = train.micro_batch * train.gradient_accumulation_steps
        counts = {role: rows * _flops(skeleton.skeleton, length) for role, skeleton in skeletons.items()}
        counts["student"] = rows * _flops(trained, length)
        return {
            "name": checked.name,
            "models": {role: skeleton.facts() | _vocabulary(skeleton) for role, skeleton in skeletons.items()},
            "parameters": {"trainable": sizes.trainable, "total": sizes.total},
            "steps": train.max_steps,
            "tokens_per_step": rows * length,
            "memory_bytes": memory.parts,
            "resident_bytes": memory.resident,
            "flops_per_step": {**counts, "total": sum(counts.values())},
            "warnings": notes,
        }


def _rows_of(length: int, rows: int) -> Corpus:
    """Return data of rows of `length` tokens, all of them scored."""
    row = [Document(np.zeros(length, np.int64), np.ones(length, bool), 0)]
    unread: Any = None
    return Corpus(
        rows=[row] * rows, held_out=[], mixture=None, report=unread, fingerprint="", row_lengths=np.full(rows, length),
        longest={"student": length, "teacher": length}, ids_read_by_both=unread, ids_read=unread,
    )  # fmt: skip


def _vocabulary(skeleton: Skeleton) -> dict[str, int | None]:
    return {
        "vocabulary": skeleton.config.get_text_config().vocab_size,
        "tokens": facts_of(skeleton.located.source, ()).tokens,
    }


def _flops(model: torch.nn.Module, tokens: int) -> int:
    """Return the FLOPs of a model on the meta device for a row: forward, and backward where it has trainable weights.

    Attention counts all pairs of positions, without the half that a causal mask saves.
    """
    trained = any(weight.requires_grad for weight in model.parameters())
    ids = torch.zeros(1, tokens, dtype=torch.int64, device="meta")
    mask = torch.zeros(1, 1, tokens, tokens, device="meta")  # transformers reads the values of any smaller one
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(trained):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        if trained:
            logits.sum().backward()
    return int(counter.get_total_flops())
