"""The tokenised data of a run: training rows and held-out documents, made from the recipe's `data` section.

Rows are tokenised once: the tokens are stored in the cache, under a hash of everything that they depend on.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import TypeAdapter

from neoplug.data.batch import Document
from neoplug.data.encode.chat import template_text
from neoplug.data.encode.row_encoder import RowEncoder
from neoplug.data.encode.teacher_prompt import TeacherPrompt
from neoplug.data.encode.text_encoder import Tokenizer
from neoplug.data.ingest.pipeline import INSPECTED_ROWS, recognise_columns
from neoplug.data.ingest.recipe_sources import eval_source_of, training_sources
from neoplug.data.ingest.report import Report
from neoplug.data.ingest.sources import is_local
from neoplug.data.mixture import Mixture, epoch_rows
from neoplug.data.store.build import make_store
from neoplug.data.store.key import store_key, tokenizer_identity
from neoplug.data.store.token_files import Store, open_store
from neoplug.errors import DiskError, Problem, RecipeError, UsageError
from neoplug.files import PARTIAL, cache_root, lock

if TYPE_CHECKING:
    from neoplug.recipe import Data

# Keys of `data` that the cache key leaves out: it has the content behind them, or tokens do not depend on them.
NOT_IN_KEY = {"source", "sources", "eval_source", "chat_template", "max_dropped_rows"}


@dataclass(frozen=True, eq=False)
class Corpus:
    """The tokenised data of a run, with R training rows. Documents are read from the token store on access.

    rows         the training rows, the units of a batch: several documents each with packing, else exactly one
    held_out     documents that are never trained on and never packed
    mixture      selects the rows of an epoch; None where an epoch has all rows
    report       counts of what became of the sources' rows
    fingerprint  sha256 of all tokens and masks above, in hexadecimal
    row_lengths  [R] int64: tokens of each training row
    longest      tokens of the longest document, as the `student` and as the `teacher` reads it
    used         [U] int64: every token id that both models read, ascending
    """

    rows: Sequence[list[Document]]
    held_out: Sequence[Document]
    mixture: Mixture | None
    report: Report
    fingerprint: str
    row_lengths: np.ndarray
    longest: Mapping[str, int]
    used: np.ndarray


def load_corpus(data: Data, tokenizer: Tokenizer, teacher: TeacherPrompt | None = None) -> Corpus:
    """Return the tokenised data of a recipe, from the cache where an earlier run tokenised it.

    teacher  renders the teacher's prompts, where they are not the student's
    raises   RecipeError where the source, its columns or the split cannot be used, no row is left, or more rows are
             dropped than the recipe allows
    """
    corpus = read_corpus(data, tokenizer, teacher)
    if problems := corpus.report.problems(data.max_dropped_rows, has_prompts=teacher is not None):
        raise RecipeError(problems)
    return corpus


def read_corpus(data: Data, tokenizer: Tokenizer, teacher: TeacherPrompt | None = None) -> Corpus:
    """Return the same, however many rows were dropped: `neoplug preview` shows the rest."""
    training, evaluation, template = training_sources(data), eval_source_of(data), template_text(data.chat_template)
    depends = data.model_dump(exclude=NOT_IN_KEY) | {
        "sources": [[name, dict(source.columns), source.reader.identity()] for name, source in training.items()],
        "eval_source": evaluation and evaluation.reader.identity(),
        "chat_template": template,
        "teacher": teacher and [teacher.chat.template, tokenizer_identity(teacher.chat.tokenizer)],
    }
    folder = cache_root() / "tokens" / store_key(depends, tokenizer)
    try:
        with lock(folder):
            if (store := open_store(folder)) is None:
                _remove(folder)
                make_store(folder, data, RowEncoder(tokenizer, template, data.train_on, teacher), training, evaluation)
                store = Store(folder)
    except (OSError, DiskError) as error:
        why = error.reason if isinstance(error, DiskError) else error
        fix = "free some disk space there, or set NEOPLUG_HOME to a folder on another disk"
        raise UsageError(f"the tokens cannot be stored in {folder.parent}: {why}\nfix: {fix}") from error
    return _corpus(store, data)


def check_source(data: Data) -> list[Problem]:
    """Return the problems in the columns of local sources, by their first rows; needs no tokenizer and no model."""
    problems = []
    for source in [*training_sources(data).values(), eval_source_of(data)]:
        if source is None or not is_local(source.name):
            continue
        try:
            recognise_columns(list(islice(source.reader.rows(), INSPECTED_ROWS)), source)
        except RecipeError as error:
            problems += error.problems
    return problems


def _remove(folder: Path) -> None:
    """Remove a damaged store, and partial ones that killed processes left behind."""
    for path in [folder, *folder.parent.glob(f".{folder.name}.*{PARTIAL}")]:
        shutil.rmtree(path, ignore_errors=True)


def _corpus(store: Store, data: Data) -> Corpus:
    """Return a store's content, with what of the recipe is not part of a store: the sources' paths and weights."""
    report = TypeAdapter(Report).validate_python(store.record["report"])
    rows = {name: counts.training_rows for name, counts in report.read.items()}
    weights = {name: source.weight for name, source in data.parts.items() if source.weight is not None}
    shown = epoch_rows(rows, weights) if weights else rows
    for name, source in data.parts.items():
        report.read[name].source, report.read[name].epoch_rows = source.source, shown[name]
    return Corpus(
        rows=store.rows,
        held_out=store.held_out,
        mixture=Mixture(tuple(rows), tuple(rows.values()), tuple(shown.values())) if weights else None,
        report=report,
        fingerprint=store.record["fingerprint"],
        row_lengths=store.row_lengths,
        longest=store.longest,
        used=store.used,
    )
