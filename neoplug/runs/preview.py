"""Preview of training rows as they are trained: the text that each model reads, its answer tokens, and its changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, groupby, islice
from typing import TYPE_CHECKING, Any

from neoplug.data import Corpus, Document
from neoplug.data.batch import Batch, collate
from neoplug.data.batch_text import BatchDocument, changes, documents_of
from neoplug.data.encode.text_encoder import Tokenizer
from neoplug.data.preview_text import Piece, pieces
from neoplug.runs.inputs import TextInputs, find_models, resolve_text
from neoplug.runs.progress import Silent
from neoplug.runs.steps import count_steps, make_sampler
from neoplug.training.batch_source import BatchSource, progress_at

if TYPE_CHECKING:
    from neoplug.errors import Problem
    from neoplug.recipe import ResolvedRecipe

Rows = Sequence[Sequence[Document]]  # of a micro-batch: the documents of each row
AsRead = tuple[BatchDocument, BatchDocument]  # a document as the student and as the teacher reads it


@dataclass(frozen=True)
class DocumentText:
    """The text of a document in pieces, as the student reads it and as the teacher does; None: as the student does."""

    student: list[Piece]
    teacher: list[Piece] | None


@dataclass(frozen=True)
class RowText:
    """A training row as it is trained.

    rows       1; or the number of rows of a micro-batch in which a treatment changed the number of documents
    documents  the text of each document
    tokens     number of the student's tokens
    scored     number of the answer tokens
    changes    what treatments changed, a line each
    emptied    whether treatments left no answer token
    """

    rows: int
    documents: list[DocumentText]
    tokens: int
    scored: int
    changes: list[str]
    emptied: bool


@dataclass(frozen=True)
class Preview:
    """Training rows, and a summary of all the data.

    rows         the first rows of the data; with treatments, the first that the run trains
    treatments   the plugins that changed the rows, in the order of their calls
    total        number of all training rows
    held_out     number of held-out documents
    report       lines of the data report: rows read, dropped, cut and split
    kinds        lines of the data report for each kind of row
    dropped      for each reason, the first row that was dropped: the reason, the number and the beginning of the row
    differences  a line for each difference of the teacher's tokenizer and chat template
    problems     problems of the data, for which a run is refused
    """

    rows: list[RowText]
    treatments: Sequence[str]
    total: int
    held_out: int
    report: list[str]
    kinds: list[str]
    dropped: list[tuple[str, int, str]]
    differences: list[str]
    problems: list[Problem]


def preview(checked: ResolvedRecipe, rows: int) -> Preview:
    """Return `rows` training rows and a summary of the data; loads tokenizers and data, no model.

    Raises:
        RecipeError: a model is not found or has no tokenizer, or the data cannot be read.
        PluginError: a plugin cannot edit a batch.
    """
    with checked.marking():
        text = resolve_text(checked, find_models(checked), Silent())
    corpus, report = text.corpus, text.corpus.report
    edits = (checked.plugins.implements(hook) for hook in ("edit_documents", "edit_batch"))
    treatments = tuple(dict.fromkeys(chain.from_iterable(edits)))
    batches = treated_batches(checked, corpus) if treatments else untreated_batches(corpus)
    shown = (row for documents, batch in batches for row in row_texts(documents, batch, text))
    return Preview(
        rows=list(islice(shown, min(rows, len(corpus.rows)))),
        treatments=treatments,
        total=len(corpus.rows),
        held_out=len(corpus.held_out),
        report=report.lines(),
        kinds=report.kind_lines(),
        dropped=[(reason, dropped.first[0], dropped.excerpt) for reason, dropped in report.dropped.items()],
        differences=text.differences,
        problems=text.problems,
    )


def untreated_batches(corpus: Corpus) -> Iterator[tuple[Rows, Batch]]:
    """Yield a micro-batch of each training row, in the order of the data."""
    for row in corpus.rows:
        yield [row], collate(row)


def treated_batches(checked: ResolvedRecipe, corpus: Corpus) -> Iterator[tuple[Rows, Batch]]:
    """Yield the micro-batches that a run in one process trains, in its order, as its treatments leave them."""
    sampler, seed = make_sampler(checked, corpus, 1), checked.recipe.seed
    source = BatchSource(corpus=corpus, sampler=sampler, plugins=checked.plugins, seed=seed, rank=0)
    total = count_steps(checked.recipe.train, sampler.steps_per_epoch)
    for step in range(total):
        numbers = sampler.micro_batches(step, 0)
        batches = source.micro_batches(step, progress_at(step, total))
        for rows, (batch, _) in zip(numbers, batches, strict=True):
            yield [corpus.rows[row] for row in rows], batch


def row_texts(rows: Rows, batch: Batch, text: TextInputs) -> Iterator[RowText]:
    """Yield the text of each row of a micro-batch; one for all where the batch has another number of documents."""
    before = as_read(collate([document for row in rows for document in row]))
    after = as_read(batch)
    if len(before) != len(after):
        changed = [f"{len(after)} documents, before {len(before)}"]
        yield row_text(len(rows), before, after, changed, text)
        return
    for end, row in zip(accumulate(map(len, rows)), rows, strict=True):
        part = slice(end - len(row), end)
        found = [edits(old, new, text.tokenizer) for old, new in zip(before[part], after[part], strict=True)]
        lines = [
            (f"document {number}, " if len(row) > 1 else "") + line
            for number, lines in enumerate(found, start=1)
            for line in lines
        ]
        yield row_text(1, before[part], after[part], lines, text)


def as_read(batch: Batch) -> list[AsRead]:
    """Return the documents of a micro-batch as each model reads them."""
    return list(zip(documents_of(batch), documents_of(batch.for_teacher()), strict=True))


def edits(before: AsRead, after: AsRead, tokenizer: Tokenizer) -> Iterator[str]:
    """Yield a line for each change of the student's text, and one where the teacher reads another text of its own."""
    yield from changes(before[0], after[0], tokenizer)
    if before[1].ids != after[1].ids != after[0].ids:
        yield "the teacher reads another text"


def row_text(
    rows: int, before: Sequence[AsRead], after: Sequence[AsRead], changed: list[str], text: TextInputs
) -> RowText:
    """Return the text of documents."""
    scored = sum(len(document.labels) for document, _ in after)
    return RowText(
        rows=rows,
        documents=[document_text(*document, text.tokenizer, text.teacher_tokenizer) for document in after],
        tokens=sum(len(document.ids) for document, _ in after),
        scored=scored,
        changes=changed,
        emptied=not scored and any(document.labels for document, _ in before),
    )


def document_text(
    document: BatchDocument, for_teacher: BatchDocument, tokenizer: Any, teacher_tokenizer: Any
) -> DocumentText:
    """Return a document as text, decoded by the tokenizers of the student and of the teacher."""
    student = merge_pieces(pieces(document.as_document(), tokenizer))
    if for_teacher.ids == document.ids:
        return DocumentText(student, None)
    return DocumentText(student, merge_pieces(pieces(for_teacher.as_document(), teacher_tokenizer)))


def merge_pieces(tokens: Iterable[Piece]) -> list[Piece]:
    """Concatenate successive pieces that all have a loss, or all have none."""
    groups = groupby(tokens, key=lambda piece: piece[1])
    return [("".join(text for text, _ in members), scored) for scored, members in groups]
