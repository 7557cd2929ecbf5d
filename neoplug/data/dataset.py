"""The data of a run: from the recipe's `data` section to documents that train and documents that measure.

They are tokenised once: the tokens lie in the cache, under a hash of everything that they depend on.
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
from neoplug.data.encode.teacher_prompt import TeacherPrompt
from neoplug.data.encode.tokenise import Tokeniser
from neoplug.data.encode.tokens import Tokenizer
from neoplug.data.ingest.intake import PEEKED_ROWS, columns_of
from neoplug.data.ingest.parts import eval_part, training_parts
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

ELSEWHERE = {"source", "sources", "eval_source", "chat_template", "max_dropped_rows"}  # what tokens do not depend on


@dataclass(frozen=True, eq=False)
class Corpus:
    """Everything that a run reads. Documents are made as they are asked for; R training rows.

    rows         what a batch counts: of several documents where rows are packed, else of exactly one
    held_out     never trained on, never packed
    mixture      which of the rows an epoch shows; None where it shows all
    report       what became of the sources' rows
    fingerprint  sha256 of all tokens and masks above, in hexadecimal
    row_lengths  [R] int64: how many tokens each training row has
    longest      the tokens of the longest document, as the `student` and as the `teacher` reads it
    used         [U] int64: every token that both models read, ascending
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
    """Return the data of a recipe: read, split, tokenised, cut and packed, now or by an earlier run.

    teacher  writes the prompts that the teacher reads, where they are not the student's
    raises   RecipeError where the source, its columns or the split cannot be used, nothing is left of them, or more is
             dropped than the recipe allows
    """
    corpus = read_corpus(data, tokenizer, teacher)
    if problems := corpus.report.problems(data.max_dropped_rows, has_prompts=teacher is not None):
        raise RecipeError(problems)
    return corpus


def read_corpus(data: Data, tokenizer: Tokenizer, teacher: TeacherPrompt | None = None) -> Corpus:
    """Return the same, whatever was dropped: what is left is to be looked at."""
    training, kept, template = training_parts(data), eval_part(data), template_text(data.chat_template)
    depends = data.model_dump(exclude=ELSEWHERE) | {
        "sources": [[name, dict(part.columns), part.opened.identity()] for name, part in training.items()],
        "eval_source": kept and kept.opened.identity(),
        "chat_template": template,
        "teacher": teacher and [teacher.chat.template, tokenizer_identity(teacher.chat.tokenizer)],
    }
    folder = cache_root() / "tokens" / store_key(depends, tokenizer)
    try:
        with lock(folder):
            if (store := open_store(folder)) is None:
                _clear(folder)
                make_store(folder, data, Tokeniser(tokenizer, template, data.train_on, teacher), training, kept)
                store = Store(folder)
    except (OSError, DiskError) as error:
        why = error.reason if isinstance(error, DiskError) else error
        fix = "make room there, or set NEOPLUG_HOME to a folder on another disk"
        raise UsageError(f"the tokens cannot be stored in {folder.parent}: {why}\nfix: {fix}") from error
    return _corpus(store, data)


def check_source(data: Data) -> list[Problem]:
    """Look at the first rows of the local sources without a tokenizer: quick, before any model is loaded."""
    problems = []
    for part in [*training_parts(data).values(), eval_part(data)]:
        if part is None or not is_local(part.source):
            continue
        try:
            columns_of(list(islice(part.opened.rows(), PEEKED_ROWS)), part)
        except RecipeError as error:
            problems += error.problems
    return problems


def _clear(folder: Path) -> None:
    """Remove a damaged store, and what was left of making it by processes that were killed."""
    for left in [folder, *folder.parent.glob(f".{folder.name}.*{PARTIAL}")]:
        shutil.rmtree(left, ignore_errors=True)


def _corpus(store: Store, data: Data) -> Corpus:
    """Return what a store holds, with what of a recipe is in no store: where its rows lie now, and weights."""
    report = TypeAdapter(Report).validate_python(store.record["report"])
    rows = {name: read.training_rows for name, read in report.read.items()}
    weights = {name: part.weight for name, part in data.parts.items() if part.weight is not None}
    shown = epoch_rows(rows, weights) if weights else rows
    for name, part in data.parts.items():
        report.read[name].source, report.read[name].epoch_rows = part.source, shown[name]
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
