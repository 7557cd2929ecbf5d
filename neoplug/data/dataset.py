"""The tokenised data of a run: training rows and held-out documents, made from the recipe's `data` section.

Rows are tokenised once: their tokens are stored in the cache, under a hash of everything that they depend on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from pydantic import TypeAdapter

from neoplug.data.batch import Document
from neoplug.data.encode.chat import template_text
from neoplug.data.encode.clock import reads_clock, today
from neoplug.data.encode.row_encoder import RowEncoder
from neoplug.data.encode.teacher_encoder import TeacherEncoder
from neoplug.data.encode.template_options import validate_options
from neoplug.data.encode.text_encoder import Tokenizer
from neoplug.data.ingest.pipeline import inspect
from neoplug.data.ingest.recipe_sources import RecipeSource, eval_source_of, training_sources
from neoplug.data.ingest.report import Report
from neoplug.data.mixture import Mixture, epoch_rows
from neoplug.data.store.build import make_store
from neoplug.data.store.key import store_key, tokenizer_identity
from neoplug.data.store.token_files import Store
from neoplug.errors import DiskError, Problem, RecipeError, UsageError
from neoplug.files import cache_root, lock
from neoplug.files.contents import intact

if TYPE_CHECKING:
    from neoplug.recipe import Data
    from neoplug.registry import Plugins

# Settings of `data` that are not part of the cache key: it has the content that they name, or no token depends on them.
NOT_IN_KEY = {
    *("source", "sources", "revision", "eval_source", "eval_revision"),
    *("chat_template", "chat_template_date", "max_dropped_rows"),
}


@dataclass(frozen=True, eq=False)
class Corpus:
    """The tokenised data of a run, with R training rows. Documents are read from the token store on access.

    rows         the training rows, of which batches are made; a row has one document, with packing several
    held_out     documents that are never trained on and never packed
    mixture      selects the rows of an epoch; None where an epoch has all rows
    report       counts of the sources' rows: how many are read, dropped, cut, trained on and held out
    fingerprint  sha256 of the tokens and loss masks of `rows` and `held_out`, in hexadecimal
    row_lengths  [R] int64: the student's tokens of each training row
    longest      `student` and `teacher` -> tokens of the longest document as this model reads it
    day          the date that a chat template read, YYYY-MM-DD; None where none read it
    ids_read_by_both  [U] int64: every token id that both models read, ascending
    ids_read  `student` and `teacher` -> [U] int64: every token id that this model reads, ascending
    commits  name of each source that is a dataset of the hub (`source` and `eval_source` without one) -> its commit
    """

    rows: Sequence[list[Document]]
    held_out: Sequence[Document]
    mixture: Mixture | None
    report: Report
    fingerprint: str
    row_lengths: np.ndarray
    longest: Mapping[str, int]
    ids_read_by_both: np.ndarray
    ids_read: Mapping[str, np.ndarray]
    day: str | None = None
    commits: Mapping[str, str] = field(default_factory=dict)


def load_corpus(
    data: Data, tokenizer: Tokenizer, teacher: TeacherEncoder | None = None, plugins: Plugins | None = None
) -> Corpus:
    """Return the tokenised data of a recipe whose report has no problem; arguments as `load_unvalidated_corpus`.

    raises  RecipeError as `load_unvalidated_corpus`, and where the report has a problem: more rows are dropped than
            the recipe allows, or the teacher has a chat template and no row is a conversation
    """
    corpus = load_unvalidated_corpus(data, tokenizer, teacher, plugins)
    if problems := corpus.report.problems(data.max_dropped_rows, has_prompts=teacher is not None):
        raise RecipeError(problems)
    return corpus


def load_unvalidated_corpus(
    data: Data, tokenizer: Tokenizer, teacher: TeacherEncoder | None = None, plugins: Plugins | None = None
) -> Corpus:
    """Return the tokenised data of a recipe, whatever the problems in its report: `neoplug preview` shows both.

    It is tokenised here, or read from the cache where an earlier run stored it.

    teacher  renders conversations for a teacher with its own chat template; None: it reads the student's tokens
    plugins  of the recipe; needed where a source is one
    raises   RecipeError where a source, its columns or the split cannot be used, or no row is left; UsageError where
             the tokens cannot be stored
    """
    training, evaluation = training_sources(data, plugins), eval_source_of(data, plugins)
    template = template_text(data.chat_template, tokenizer)
    templates = [
        *_templates(tokenizer, template),
        *(_templates(teacher.chat.tokenizer, teacher.chat.given) if teacher else ()),
    ]
    validate_options(data.chat_template_kwargs, templates)
    hashed = data.model_dump(exclude=NOT_IN_KEY) | {
        "sources": [[name, dict(source.columns), source.reader.identity()] for name, source in training.items()],
        "eval_source": evaluation and evaluation.reader.identity(),
        "chat_template": template,
        "teacher": teacher and [teacher.chat.given, tokenizer_identity(teacher.chat.tokenizer)],
    }
    day = data.chat_template_date or today()
    clock = reads_clock(template or tokenizer.chat_template) or (teacher is not None and teacher.chat.reads_clock)
    root = cache_root() / "tokens"
    folder, dated = root / store_key(hashed, tokenizer), root / store_key(hashed | {"day": day}, tokenizer)
    try:
        with lock(folder):
            folders = [folder, dated] if clock else [folder]
            if not any(intact(found, "the rows are tokenised again") for found in folders):
                keep = data.keep_incomplete_rows
                encoder = RowEncoder(tokenizer, template, data.train_on, teacher, keep_incomplete=keep, day=day)
                make_store(folders[-1], data, encoder, training, evaluation)
                if clock and not _has_conversations(Store(dated)):  # no template was used
                    dated.rename(folder)
            store = Store(next(found for found in folders if found.is_dir()))
    except (OSError, DiskError) as error:
        why = error.reason if isinstance(error, DiskError) else error
        fix = "free some disk space there, or set NEOPLUG_HOME to a folder on another disk"
        raise UsageError(f"the tokens cannot be stored in {folder.parent}: {why}\nfix: {fix}") from error
    return replace(_corpus(store, data, training, evaluation), day=day if clock and _has_conversations(store) else None)


def _has_conversations(store: Store) -> bool:
    return bool({"messages", "alpaca"} & {*store.record["report"]["kinds"]})


def _templates(tokenizer: Tokenizer, template: str | None) -> list[str]:
    """Return the chat templates that may render rows: the given one, or all of the tokenizer."""
    own = tokenizer.chat_template or {}
    return [template] if template else [own] if isinstance(own, str) else list(own.values())


def check_local_sources(data: Data, plugins: Plugins | None = None) -> list[Problem]:
    """Return the problems of local sources: no such source, no readable row among the first, unknown columns.

    It needs no tokenizer, no model and no network. Sources on the Hugging Face hub are left out.

    plugins  of the recipe; needed where a source is one
    """
    problems = []
    for source in [*training_sources(data, plugins).values(), eval_source_of(data, plugins)]:
        if source is None or not source.is_local:
            continue
        try:
            inspect(source)
        except RecipeError as error:
            problems += error.problems
    return problems


def _corpus(store: Store, data: Data, training: Mapping[str, RecipeSource], evaluation: RecipeSource | None) -> Corpus:
    """Return a store's content, with what it does not have of the sources: their locations, weights and notes."""
    report = TypeAdapter(Report).validate_python(store.record["report"])
    rows = {name: counts.training_rows for name, counts in report.read.items()}
    weights = {name: source.weight for name, source in data.parts.items() if source.weight is not None}
    in_epoch = epoch_rows(rows, weights) if weights else rows
    for name, source in training.items():
        counts = report.read[name]
        counts.source, counts.epoch_rows, counts.notes = source.name, in_epoch[name], source.reader.notes
    if report.eval_read and evaluation:
        report.eval_read.source, report.eval_read.notes = evaluation.name, evaluation.reader.notes
        report.eval_key = "eval_source" if data.eval_source else "eval_split"
    named = {name or "source": source for name, source in training.items()} | {"eval_source": evaluation}
    return Corpus(
        rows=store.rows,
        held_out=store.held_out,
        mixture=Mixture(tuple(rows), tuple(rows.values()), tuple(in_epoch.values())) if weights else None,
        report=report,
        fingerprint=store.record["fingerprint"],
        row_lengths=store.row_lengths,
        longest=store.longest,
        ids_read_by_both=store.used,
        ids_read=store.used_by,
        commits={name: commit for name, source in named.items() if source and (commit := source.commit)},
    )
