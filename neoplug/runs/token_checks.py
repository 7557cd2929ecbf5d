"""Checks before a run that models have a row for each token, share the tokens, and split text into the same tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from neoplug.errors import Problem, RecipeError

if TYPE_CHECKING:
    from neoplug.data import Corpus
    from neoplug.data.encode.segmentation import Segmentation
    from neoplug.models.vocabulary import Vocabulary

SHOWN = 5  # tokens named in an error


def validate_rows_of_tokens(corpus: Corpus, rows: Mapping[str, int], tokenizers: Mapping[str, Any]) -> None:
    """Refuse text with tokens for which the model that reads them has no row, though its tokenizer has the token.

    rows        `student` and `teacher` -> the rows of its embedding and head
    tokenizers  `student` and `teacher` -> its own tokenizer
    """
    for role, size in rows.items():
        tokenizer = tokenizers[role]
        known = set(tokenizer.get_vocab().values())
        beyond = [int(token) for token in corpus.ids_read[role] if token >= size]
        beyond = [token for token in beyond if token in known]  # `validate_shared_vocabulary` reports the others
        if beyond:
            fix = "resize the model to its tokenizer (`resize_token_embeddings`) and save it, or leave these tokens out"
            problem = Problem(
                what=f"the text has {_count(beyond)} beyond the {size:,} rows of the {role}{_named(beyond, tokenizer)}",
                why=f"the ids of its own tokenizer go to {max(known):,}, the rows of the model to {size - 1:,}",
                fix=fix,
                path=(role, "model"),
            )
            raise RecipeError([problem])


def _count(tokens: Sequence[int]) -> str:
    return f"{len(tokens):,} token{'' if len(tokens) == 1 else 's'}"


def _named(tokens: Sequence[int], tokenizer: Any) -> str:
    """Return the first tokens with their ids, as the end of a sentence that has counted them."""
    named = ", ".join(f"{tokenizer.convert_ids_to_tokens(token)!r} ({token})" for token in sorted(tokens)[:SHOWN])
    return f": {named}" if len(tokens) <= SHOWN else f", such as {named}"


def validate_shared_vocabulary(corpus: Corpus, vocabulary: Vocabulary, tokenizer: Any) -> None:
    """Refuse text with tokens that the teacher's vocabulary lacks."""
    unshared = vocabulary.unshared(torch.from_numpy(corpus.ids_read_by_both.copy()))
    if unshared:
        problem = Problem(
            what=f"the text has {_count(unshared)} that the teacher's vocabulary lacks{_named(unshared, tokenizer)}",
            why="the teacher cannot read them",
            fix="use a teacher with the student's vocabulary, or text without these tokens",
            path=("data", "source"),
        )
        raise RecipeError([problem])


def validate_segmentation(corpus: Corpus, segmentation: Segmentation, allowed: float) -> None:
    """Refuse a teacher whose tokenizer splits more than a share `allowed` of the documents into other tokens."""
    if segmentation.share <= allowed:
        return
    key = "max_segmentation_difference"
    problem = Problem(
        what=f"the teacher's tokenizer {segmentation.describe(corpus.report.row_label)}",
        why=f"the teacher reads the student's tokens, and was trained on its own; `{key}` allows {allowed:.2%}",
        fix=f"use a teacher whose tokenizer splits text as the student's does, or allow it with `teacher.{key}`",
        path=("teacher", "model"),
    )
    raise RecipeError([problem])
