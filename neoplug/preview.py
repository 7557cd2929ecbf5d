"""Rows as they are trained: what the model reads, and which of it is scored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from neoplug import models
from neoplug.data import load_corpus
from neoplug.data import preview as pieces_of

if TYPE_CHECKING:
    from neoplug.recipe import Checked

Stretch = tuple[str, bool]  # text, and whether its tokens are scored


@dataclass(frozen=True)
class Preview:
    """A few training rows, and what became of all.

    rows       of each row its documents, each a list of stretches of text
    tokens     of each row, how many tokens it has and how many of them are scored
    total      how many training rows there are
    held_out   how many held-out documents there are
    report     what loading the data counted, for people
    """

    rows: list[list[list[Stretch]]]
    tokens: list[tuple[int, int]]
    total: int
    held_out: int
    report: list[str]


def preview(checked: Checked, rows: int) -> Preview:
    """Return the first `rows` training rows of the recipe; loads the tokenizer and the data, no model.

    Raises:
        RecipeError: model or data do not fit the recipe.
    """
    student, key = checked.recipe.student, ("student", "model")
    with checked.marking():
        located = models.locate(student.model, student.revision, key, trust_remote_code=student.trust_remote_code)
        tokenizer = models.load_tokenizer(located, key)
        corpus = load_corpus(checked.recipe.data, tokenizer)
    return Preview(
        rows=[[joined(document) for document in row] for row in pieces_of(corpus.rows, tokenizer, rows)],
        tokens=[(sum(map(len, row)), sum(document.answer_tokens for document in row)) for row in corpus.rows[:rows]],
        total=len(corpus.rows),
        held_out=len(corpus.held_out),
        report=corpus.report.lines(),
    )


def joined(pieces: Iterable[Stretch]) -> list[Stretch]:
    """Join neighbours that are both scored, or both not."""
    groups = groupby(pieces, key=lambda piece: piece[1])
    return [("".join(text for text, _ in members), scored) for scored, members in groups]
