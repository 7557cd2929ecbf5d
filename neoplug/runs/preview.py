"""Preview of training rows: the text that each model reads, with the parts that have a loss marked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from neoplug.data import Document
from neoplug.data.preview_text import Piece, pieces
from neoplug.runs.inputs import find_models, resolve_text
from neoplug.runs.progress import Silent

if TYPE_CHECKING:
    from neoplug.errors import Problem
    from neoplug.recipe import ResolvedRecipe


@dataclass(frozen=True)
class DocumentText:
    """The text of a document in pieces, as the student reads it and as the teacher does; None: as the student does."""

    student: list[Piece]
    teacher: list[Piece] | None


@dataclass(frozen=True)
class Preview:
    """The first training rows, and a summary of all the data.

    rows         the documents of each row
    tokens       for each row, the number of its tokens and of its answer tokens
    total        number of all training rows
    held_out     number of held-out documents
    report       lines of the data report: rows read, dropped, cut and split
    kinds        lines of the data report for each kind of row
    dropped      for each reason, the first row that was dropped: the reason, the number and the beginning of the row
    differences  a line for each difference of the teacher's tokenizer and chat template
    problems     problems of the data, for which a run is refused
    """

    rows: list[list[DocumentText]]
    tokens: list[tuple[int, int]]
    total: int
    held_out: int
    report: list[str]
    kinds: list[str]
    dropped: list[tuple[str, int, str]]
    differences: list[str]
    problems: list[Problem]


def preview(checked: ResolvedRecipe, rows: int) -> Preview:
    """Return the first `rows` training rows and a summary of the data; loads tokenizers and data, no model.

    Raises:
        RecipeError: a model is not found or has no tokenizer, or the data cannot be read.
    """
    recipe = checked.recipe
    with checked.marking():
        text = resolve_text(recipe, find_models(recipe), Silent())
    corpus, report = text.corpus, text.corpus.report
    first = corpus.rows[:rows]
    return Preview(
        rows=[[document_text(document, text.tokenizer, text.teacher_tokenizer) for document in row] for row in first],
        tokens=[(sum(map(len, row)), sum(document.answer_tokens for document in row)) for row in first],
        total=len(corpus.rows),
        held_out=len(corpus.held_out),
        report=report.lines(),
        kinds=report.kind_lines(),
        dropped=[(reason, dropped.first[0], dropped.excerpt) for reason, dropped in report.dropped.items()],
        differences=text.differences,
        problems=text.problems,
    )


def document_text(document: Document, tokenizer: Any, teacher_tokenizer: Any) -> DocumentText:
    """Return a document as text, decoded by the tokenizers of the student and of the teacher."""
    student = merge_pieces(pieces(document, tokenizer))
    if document.teacher_ids is None:
        return DocumentText(student, None)
    return DocumentText(student, merge_pieces(pieces(document.as_teacher(), teacher_tokenizer)))


def merge_pieces(tokens: Iterable[Piece]) -> list[Piece]:
    """Concatenate successive pieces that all have a loss, or all have none."""
    groups = groupby(tokens, key=lambda piece: piece[1])
    return [("".join(text for text, _ in members), scored) for scored, members in groups]
