"""The documents that a run reads of the teacher, and which of them a cache has a record of.

A cache that was built elsewhere is only read (`stored_cache`); any other is completed first (`teacher_build`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neoplug.data.batch import Document
from neoplug.data.store.token_files import Lazy
from neoplug.errors import DamageError, Problem, RecipeError
from neoplug.registry import path_of
from neoplug.runs.cache_folder import TeacherCache, damage_problem, stored_kind
from neoplug.runs.steps import count_steps, make_sampler
from neoplug.runs.teacher_key import vocabulary_hash
from neoplug.teachers.cache_files import HELD_OUT, TRAIN, Shards

if TYPE_CHECKING:
    from neoplug.recipe import ResolvedRecipe
    from neoplug.runs.inputs import RunInputs

DOCUMENTS = {TRAIN: "training documents", HELD_OUT: "held-out documents"}  # in messages
AT_ONCE = 4096  # documents that are looked up together


def stored_cache(checked: ResolvedRecipe, inputs: RunInputs, folder: Path, rows: np.ndarray) -> TeacherCache:
    """Return a cache that was built elsewhere, after a check that it has what the run reads.

    rows  numbers of the training rows that the run reads

    Raises:
        RecipeError: it was built for another shared vocabulary or lacks documents, files are damaged, or a loss reads
            more than it stores.
    """
    ((section, name),) = checked.plugins.named("cache_folder")
    path = path_of(section, name)
    header, plugins = stored_kind(checked, folder)
    wanted, built = vocabulary_hash(inputs.vocabulary), header.parts["vocabulary"]
    if built not in (None, wanted):
        what = f"the cache in {folder} stores entries of another vocabulary than these models share"
        fix = "build it with this student, or as `states`, which are read with any"
        raise RecipeError([Problem(what, "an id would be another token", fix, path)])
    cache = TeacherCache(folder, header, plugins)
    damaged: list[DamageError] = []
    for part, batches in batches_by_part(checked, inputs, rows).items():
        shards = cache.shards(part)
        lookup = look_up(shards, batches)
        damaged += [*shards.damaged, *shards.validate(lookup.shards)]
        if lookup.absent and not damaged:
            counted = f"{lookup.absent} of the {lookup.wanted} {DOCUMENTS[part]}"
            what = f"the cache in {folder / part} has no record of {counted} that this run reads"
            why = "a document is found by the tokens that the teacher reads: data, tokenizer and prompt must be equal"
            fix = "copy the whole folder, build it with this recipe's data, or name the teacher's `model` and a kind"
            raise RecipeError([Problem(what, why, fix, path)])
    if damaged:
        raise RecipeError([damage_problem(path, f"{error.file} {error.what}") for error in damaged])
    return cache


@dataclass(frozen=True, eq=False)
class Lookup:
    """Which documents have records.

    wanted   number of documents
    absent   number of those without one
    batches  [n] int64: the numbers of the batches that have such a document, ascending
    shards   numbers of the shards that have a record of the others
    """

    wanted: int
    absent: int
    batches: np.ndarray
    shards: set[int]


def look_up(shards: Shards, batches: Sequence[Sequence[Document]]) -> Lookup:
    """Find the records of the documents of some batches."""
    wanted, absent, without, used = 0, 0, [np.zeros(0, np.int64)], set[int]()
    numbered = ((number, text) for number, batch in enumerate(batches) for text in teacher_texts(batch))
    while some := list(islice(numbered, AT_ONCE)):
        found, _ = shards.find([text.content_hash for _, text in some])
        missing = np.flatnonzero(found < 0)
        wanted, absent = wanted + len(some), absent + len(missing)
        without.append(np.array([number for number, _ in some])[missing])
        used |= set(found[found >= 0].tolist())
    return Lookup(wanted, absent, np.unique(np.concatenate(without)), used)


def teacher_texts(documents: Iterable[Document]) -> list[Document]:
    """Return the documents as the teacher reads them, without those that have no answer token."""
    return [document.as_teacher() for document in documents if document.answer_tokens]


def batches_by_part(
    checked: ResolvedRecipe, inputs: RunInputs, rows: np.ndarray
) -> dict[str, Sequence[list[Document]]]:
    """Return TRAIN and HELD_OUT -> the documents that a run reads, in batches as large as those of the run.

    rows  numbers of the training rows that the run reads
    """
    training, held_out = checked.recipe.train.micro_batch, inputs.corpus.held_out
    evaluation = checked.recipe.evaluate.per_device_eval_batch_size

    def of_rows(batch: int) -> list[Document]:
        chosen = rows[batch * training :][:training].tolist()
        return [document for row in chosen for document in inputs.corpus.rows[row]]

    return {
        TRAIN: Lazy(-(-len(rows) // training), of_rows),
        HELD_OUT: Lazy(
            -(-len(held_out) // evaluation), lambda batch: list(held_out[batch * evaluation :][:evaluation])
        ),
    }


def rows_read(checked: ResolvedRecipe, inputs: RunInputs, world: int) -> np.ndarray:
    """Return the numbers of the training rows that a run of `world` processes reads, ascending."""
    sampler = make_sampler(checked, inputs.corpus, world)
    steps = count_steps(checked.recipe.train, sampler.steps_per_epoch)
    if sampler.mixture is None and steps >= sampler.steps_per_epoch:
        return np.arange(len(inputs.corpus.rows))
    read = np.zeros(len(inputs.corpus.rows), bool)
    for step in range(steps):
        for rank in range(world):
            for rows in sampler.micro_batches(step, rank):
                read[rows] = True
    return np.flatnonzero(read)
