"""Rows as they are trained: what the models read, and which of it is scored."""

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
class Shown:
    """A document as stretches of text: as the student reads it, and as the teacher does where that is otherwise."""

    student: list[Piece]
    teacher: list[Piece] | None


@dataclass(frozen=True)
class Preview:
    """A few training rows, and what became of all.

    rows         the documents of each row
    tokens       of each row, how many tokens it has and how many of them are scored
    total        how many training rows there are
    held_out     how many held-out documents there are
    report       what loading the data counted, for people
    kinds        the same of each kind of row
    dropped      the first row that was dropped for each reason: the reason, its number, how it begins
    differences  what the teacher's tokenizer and template do otherwise
    problems     what of all this ends a run
    """

    rows: list[list[Shown]]
    tokens: list[tuple[int, int]]
    total: int
    held_out: int
    report: list[str]
    kinds: list[str]
    dropped: list[tuple[str, int, str]]
    differences: list[str]
    problems: list[Problem]


def preview(checked: ResolvedRecipe, rows: int) -> Preview:
    """Return the first `rows` training rows of the recipe; loads tokenizers and the data, no model.

    Raises:
        RecipeError: model or data do not fit the recipe.
    """
    recipe = checked.recipe
    with checked.marking():
        text = resolve_text(recipe, find_models(recipe), Silent())
    corpus, report = text.corpus, text.corpus.report
    first = corpus.rows[:rows]
    return Preview(
        rows=[[shown(document, text.tokenizer, text.teacher_tokenizer) for document in row] for row in first],
        tokens=[(sum(map(len, row)), sum(document.answer_tokens for document in row)) for row in first],
        total=len(corpus.rows),
        held_out=len(corpus.held_out),
        report=report.lines(),
        kinds=report.kind_lines(),
        dropped=[(reason, dropped.first[0], dropped.excerpt) for reason, dropped in report.dropped.items()],
        differences=text.differences,
        problems=text.problems,
    )


def shown(document: Document, ours: Any, theirs: Any) -> Shown:
    """Return a document as text, by the tokenizers of the student and of the teacher."""
    same = document.teacher_ids is None
    return Shown(joined(pieces(document, ours)), None if same else joined(pieces(document.as_teacher(), theirs)))


def joined(found: Iterable[Piece]) -> list[Piece]:
    """Join neighbours that are both scored, or both not."""
    groups = groupby(found, key=lambda piece: piece[1])
    return [("".join(text for text, _ in members), scored) for scored, members in groups]
