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
from neoplug.data.chat import template_text
from neoplug.data.held_out import split
from neoplug.data.intake import PEEKED_ROWS, Intake, columns_of, nothing_left
from neoplug.data.key import store_key, tokenizer_identity
from neoplug.data.packing import pack
from neoplug.data.report import IN_EVAL, Report
from neoplug.data.sources import Source, is_local, open_source
from neoplug.data.spool import Spool
from neoplug.data.store import Store, open_store, write_record
from neoplug.data.teacher_prompt import TeacherPrompt
from neoplug.data.tokenise import Tokeniser
from neoplug.data.tokens import Tokenizer
from neoplug.errors import Problem, RecipeError, UsageError
from neoplug.files import PARTIAL, cache_root, folder_atomically, lock

if TYPE_CHECKING:
    from neoplug.recipe import Data


@dataclass(frozen=True, eq=False)
class Corpus:
    """Everything that a run reads. Documents are made as they are asked for; R training rows.

    rows         what a batch counts: of several documents where rows are packed, else of exactly one
    held_out     never trained on, never packed
    report       what became of the source's rows
    fingerprint  sha256 of all tokens and masks above, in hexadecimal
    row_lengths  [R] int64: how many tokens each training row has
    longest      the tokens of the longest document, as the `student` and as the `teacher` reads it
    used         [U] int64: every token that both models read, ascending
    """

    rows: Sequence[list[Document]]
    held_out: Sequence[Document]
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
    sources, template = _sources(data), template_text(data.chat_template)
    content = {key: source.identity() for key, source in sources.items()} | {"chat_template": template}
    content["teacher"] = teacher and [teacher.chat.template, tokenizer_identity(teacher.chat.tokenizer)]
    folder = cache_root() / "tokens" / store_key(data.model_dump(), content, tokenizer)
    try:
        with lock(folder):
            if (store := open_store(folder)) is None:
                _clear(folder)
                _make(folder, data, sources, Tokeniser(tokenizer, template, data.train_on, teacher))
                store = Store(folder)
    except OSError as error:
        fix = "make room there, or set NEOPLUG_HOME to a folder on another disk"
        raise UsageError(f"the tokens cannot be stored in {folder.parent}: {error}\nfix: {fix}") from error
    report = TypeAdapter(Report).validate_python(store.record["report"])
    report.source = data.source  # the same rows may lie elsewhere now
    return Corpus(
        rows=store.rows,
        held_out=store.held_out,
        report=report,
        fingerprint=store.record["fingerprint"],
        row_lengths=store.row_lengths,
        longest=store.longest,
        used=store.used,
    )


def check_source(data: Data) -> list[Problem]:
    """Look at the first rows of the local sources without a tokenizer: quick, before any model is loaded."""
    problems = []
    for key, name in (("source", data.source), ("eval_source", data.eval_source)):
        if name is None or not is_local(name):
            continue
        try:
            rows = open_source(name, data.split, ("data", key)).rows()
            columns_of(list(islice(rows, PEEKED_ROWS)), name, data, ("data", key))
        except RecipeError as error:
            problems += error.problems
    return problems


def _sources(data: Data) -> dict[str, Source]:
    names = {"source": data.source, "eval_source": data.eval_source}
    return {key: open_source(name, data.split, ("data", key)) for key, name in names.items() if name is not None}


def _clear(folder: Path) -> None:
    """Remove a damaged store, and what was left of making it by processes that were killed."""
    for left in [folder, *folder.parent.glob(f".{folder.name}.*{PARTIAL}")]:
        shutil.rmtree(left, ignore_errors=True)


def _make(folder: Path, data: Data, sources: Mapping[str, Source], tokeniser: Tokeniser) -> None:
    """Tokenise the sources into the store `folder`."""
    report = Report(data.source, [], data.max_length, packing=data.packing)
    with folder_atomically(folder) as target:
        with Spool(target / "spool") as spool:
            held_out = _taken(Intake(data, tokeniser, report, spool), sources)
            order, bounds = _arranged(spool, held_out, data)
            report.packed_rows = len(bounds) - 1
            fingerprint = spool.write(target, order, bounds)
        counted = TypeAdapter(Report).dump_python(report, mode="json")
        write_record(target, fingerprint=fingerprint, report=counted)


def _taken(intake: Intake, sources: Mapping[str, Source]) -> np.ndarray:
    """Take in all rows; return [rows] bool: which of them are held out."""
    data, report, spool = intake.data, intake.report, intake.spool
    columns, report.rows_read = intake.take(sources["source"], data.source, ("data", "source"))
    report.columns = list(columns.seen)
    training = len(spool.digests)
    if data.eval_source is None:
        held_out = split(spool.digests, data.held_out)
    else:
        key = ("data", "eval_source")
        _, report.eval_rows_read = intake.take(sources["eval_source"], data.eval_source, key, IN_EVAL)
        held_out = np.arange(len(spool.digests)) >= training
        report.leaked = int(np.isin(spool.digests[training:], spool.digests[:training]).sum())
    report.train, report.held_out = spool.side(~held_out), spool.side(held_out)
    for side, purpose in ((report.train, "to train on"), (report.held_out, "to measure on")):
        if not side.documents:
            raise RecipeError([nothing_left(f"no row {purpose} is left", report, ("data", "source"))])
    return held_out


def _arranged(spool: Spool, held_out: np.ndarray, data: Data) -> tuple[np.ndarray, np.ndarray]:
    """Return the documents' numbers, row by row and then those held out, and where each row begins."""
    training, kept = spool.documents_of(~held_out), spool.documents_of(held_out)
    order, bounds = np.arange(len(training)), np.arange(len(training) + 1)
    if data.packing:
        order, bounds = pack(spool.lengths[training], data.max_length)
    return np.concatenate([training[order], kept]), bounds
