"""Conformance tests of treatments that edit documents or batches, from a single token to several documents.

from neoplug.testing import check_treatment

def test_mine():
    check_treatment(Mine())
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from neoplug.data import BatchSampler, without_answers
from neoplug.data.batch import Batch, Document, collate, concatenated
from neoplug.errors import NeoplugError
from neoplug.registry import Plugins
from neoplug.testing.hooks import answer, global_seeds
from neoplug.testing.loss_examples import hook
from neoplug.testing.search import Broken, Kit, properties_of
from neoplug.training.batch_source import BatchSource

VOCABULARY = 64
HOOKS = ("edit_documents", "edit_batch")
PARTS = ("input_ids", "positions", "labels", "rows")


def check_treatment(treatment: Any) -> None:
    """Test every property of treatments that implement `edit_documents` or `edit_batch`.

    Raises AssertionError for a property that does not hold, with the smallest of the kit's batches that breaks it.
    """
    TREATMENT.hold(treatment, 0)


class TreatmentProperties:
    """The properties of treatments: each method without underscore, which raises Broken where it does not hold."""

    def valid(self, treatment: Any) -> None:
        """It leaves documents and a batch that the models can read, from the first step to the last."""
        for name in BATCHES:
            for progress in (0.0, 0.5, 1.0):
                _edited(treatment, name, progress=progress)

    def repeated(self, treatment: Any) -> None:
        """The same generator gives the same batch, so that a resumed run and all ranks agree."""
        for name in BATCHES:
            found = []
            for number in range(2):
                with global_seeds(number):
                    found.append(_edited(replace(treatment), name))
            if not _same(*found):
                raise Broken(f"{name}: the same generator gives another batch: it draws from elsewhere")

    def stateless(self, treatment: Any) -> None:
        """What it does to a batch does not depend on the batches before, unless it has a state that is stored."""
        used = replace(treatment)
        for name in BATCHES:
            _edited(used, name, seed=1)
        if hook(treatment, "state_dict") is not None:
            return
        for name in BATCHES:
            if not _same(_edited(used, name), _edited(replace(treatment), name)):
                raise Broken(f"{name}: edited after other batches it is another, and `state_dict` stores nothing")

    def dealt(self, treatment: Any) -> None:
        """What it does to a row depends neither on ranks nor on micro-batches, unless it has a state that is stored."""
        if hook(treatment, "state_dict") is not None:
            return
        (together,) = _of_ranks(treatment, 1)
        ranks = _of_ranks(treatment, 2)
        alone = [batch for batches in zip(*ranks, strict=True) for batch in batches]  # in the order of the rows
        rows = [batch for batch, has_documents in alone if has_documents]
        if rows and not _same(concatenated(rows), together[0][0]):
            raise Broken("rows that are trained one by one on two ranks are not those of one process")

    def documents(self, treatment: Any) -> None:
        """It leaves the documents of the data set as they are."""
        for name, documents in BATCHES.items():
            before = [[array.copy() for array in _arrays(document)] for document in documents]
            _edited(treatment, name)
            for document, copies in zip(documents, before, strict=True):
                if not all(map(np.array_equal, _arrays(document), copies)):
                    raise Broken(f"{name}: it writes into the documents, which the next epoch reads again")


TREATMENT = Kit("treatment", {}, once=properties_of(TreatmentProperties()))


def _document(row: int, answers: str) -> Document:
    """Return a document of tokens drawn by its row; `answers` has an `a` for each answer token."""
    ids = np.random.default_rng(row).integers(3, VOCABULARY, len(answers))
    return Document(ids, np.array([letter == "a" for letter in answers]), row)


def _with_own_prompt(document: Document) -> Document:
    ids, mask = np.append([1, 2], document.input_ids), np.append([False, False], document.loss_mask)
    return replace(document, teacher_ids=ids, teacher_loss_mask=mask)


# What each batch is -> its documents, from the smallest.
BATCHES: Mapping[str, list[Document]] = {
    "one answer token": [_document(0, "-a")],
    "a document without answer tokens": [_document(1, "---")],
    "a document": [_document(2, "---aaaaa")],
    "two answers in a document": [_document(3, "--aaa---aa")],
    "documents of other lengths": [_document(4, "-aa"), _document(5, "----aaaaaaaa"), _document(6, "--a-a")],
    "a teacher with a prompt of its own": [_with_own_prompt(_document(7, "--aaa")), _document(8, "-aaa")],
}


def _arrays(document: Document) -> list[np.ndarray]:
    texts = (document, document.as_teacher())
    return [array for text in texts for array in (text.input_ids, text.loss_mask)]


def _edited(treatment: Any, name: str, *, seed: int = 0, progress: float = 0.5) -> Batch:
    """Return a batch after the treatment.

    Raises:
        Broken: the treatment raises an error, or leaves a batch that cannot be read.
        TypeError: it has neither `edit_documents` nor `edit_batch`.
    """
    if not any(hook(treatment, name) for name in HOOKS):
        raise TypeError(f"{type(treatment).__name__} has neither `edit_documents` nor `edit_batch`")
    documents, arguments = BATCHES[name], {"progress": progress, "rng": torch.Generator().manual_seed(seed)}
    try:
        if hook(treatment, "edit_documents"):
            documents = answer(treatment, "edit_documents", documents=documents, **arguments)
        batch = collate(documents or [without_answers(BATCHES[name][0])])
        if hook(treatment, "edit_batch"):
            answer(treatment, "edit_batch", batch=batch, **arguments)
    except NeoplugError as error:
        raise Broken(f"{name}: {error.message().partition(chr(10))[0]}") from error
    return batch


def _of_ranks(treatment: Any, world: int) -> list[list[tuple[Batch, bool]]]:
    """Return what each of `world` ranks reads of BATCHES in one step: one process all rows at once, others one by one.

    Raises Broken where the treatment raises an error.
    """
    rows = list(BATCHES.values())
    corpus: Any = SimpleNamespace(rows=rows, longest={"student": 99})  # what a BatchSource reads of a Corpus
    size = len(rows) if world == 1 else 1
    sampler = BatchSampler(len(rows), size, len(rows) // (size * world), world, seed=0)
    before, found = os.environ.get("RANK"), []
    try:
        for rank in range(world):
            os.environ["RANK"] = str(rank)
            plugins = Plugins({"treatments": {"treatment": replace(treatment)}})
            source = BatchSource(corpus=corpus, sampler=sampler, plugins=plugins, seed=0, rank=rank)
            found.append(list(source.micro_batches(0, 0.5)))
    except NeoplugError as error:
        raise Broken(error.message().partition("\n")[0]) from error
    finally:
        os.environ.pop("RANK") if before is None else os.environ.update(RANK=before)
    return found


def _same(one: Batch, other: Batch) -> bool:
    texts = ((one, other), (one.for_teacher(), other.for_teacher()))
    return all(_same_text(*pair) for pair in texts)


def _same_text(one: Batch, other: Batch) -> bool:
    parts = (torch.equal(getattr(one, name), getattr(other, name)) for name in PARTS)
    return all(parts) and list(one.lengths) == list(other.lengths)
