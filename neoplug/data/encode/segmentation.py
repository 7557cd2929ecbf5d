"""Comparison of how two tokenizers of one vocabulary split the text of a run into tokens.

Equal ids do not make equal tokenizers: with other merges one text is other tokens. A teacher reads the tokens of the
student, and where its own tokenizer would have split the text elsewhere, it reads sequences that it never saw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from neoplug.data.batch import Document
from neoplug.data.encode.text_encoder import TextEncoder, Tokenizer
from neoplug.seeds import derive

SAMPLE = 500  # documents that are compared
SHOWN = 3  # tokens of each in the example


@dataclass(frozen=True)
class Example:
    """A document that the two tokenizers split into different tokens.

    row     as `Document.row`
    counts  number of the student's and of the teacher's tokens
    place   index of the first token that differs
    tokens  the student's and the teacher's tokens from there on, at most SHOWN of each
    """

    row: int
    counts: tuple[int, int]
    place: int
    tokens: tuple[Sequence[str], Sequence[str]]


@dataclass(frozen=True)
class Segmentation:
    """How many of the compared documents the two tokenizers split into different tokens; the first of these."""

    compared: int
    different: int
    example: Example | None

    @property
    def share(self) -> float:
        """Return the share of documents that differ."""
        return self.different / self.compared

    def describe(self, row_label: Callable[[int], str]) -> str:
        """Return the difference as the predicate of a sentence about the teacher's tokenizer; empty without one.

        row_label  returns how messages name a row
        """
        if self.example is None:
            return ""
        (ours, theirs), (our_tokens, their_tokens) = self.example.counts, map(_listed, self.example.tokens)
        return (
            f"splits {self.different} of {self.compared} documents ({self.share:.2%}) into other tokens, such as row "
            f"{row_label(self.example.row)}: {theirs} tokens, the student's {ours}, which differ from token "
            f"{self.example.place} on: {their_tokens}, the student's {our_tokens}"
        )


def compare_segmentation(
    rows: Sequence[Sequence[Document]], student: Tokenizer, teacher: Tokenizer, seed: int
) -> Segmentation:
    """Compare the tokens of the two tokenizers for documents drawn from `rows` by `seed`.

    The text is what the teacher reads in the student's tokens: a whole document, or only its answers where the teacher
    has its own chat template. Special tokens that tokenizers add around a text are not compared.
    """
    documents = list(islice(_shuffled(rows, seed), SAMPLE))
    if _are_equal(student, teacher):  # as of two models of one family; encoding takes ten times as long
        return Segmentation(len(documents), 0, None)
    texts = student.batch_decode([_shared_ids(document) for document in documents], clean_up_tokenization_spaces=False)
    ours, theirs = (TextEncoder(tokenizer).encode(texts) for tokenizer in (student, teacher))
    pairs = list(zip(documents, ours, theirs, strict=True))
    different = [pair for pair in pairs if pair[1] != pair[2]]
    example = _example(*different[0], student, teacher) if different else None
    return Segmentation(len(pairs), len(different), example)


def _are_equal(student: Tokenizer, teacher: Tokenizer) -> bool:
    """Return whether both tokenizers are of the tokenizers library, with equal contents."""
    contents = [tokenizer.backend_tokenizer.to_str() for tokenizer in (student, teacher) if tokenizer.is_fast]
    return len(contents) == 2 and contents[0] == contents[1]


def _shuffled(rows: Sequence[Sequence[Document]], seed: int) -> Iterator[Document]:
    """Yield the documents of all rows, row by row in random order."""
    for row in np.random.default_rng(derive(seed, "segmentation")).permutation(len(rows)).tolist():
        yield from rows[row]


def _shared_ids(document: Document) -> list[int]:
    """Return the student's tokens that the teacher reads."""
    ids: list[int] = document.input_ids[document.loss_mask if document.teacher_ids is not None else ...].tolist()
    return ids


def _example(
    document: Document, ours: Sequence[int], theirs: Sequence[int], student: Tokenizer, teacher: Tokenizer
) -> Example:
    shorter = min(len(ours), len(theirs))
    place = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), shorter)
    shown = slice(place, place + SHOWN)
    tokens = student.convert_ids_to_tokens(ours[shown]), teacher.convert_ids_to_tokens(theirs[shown])
    return Example(document.row, (len(ours), len(theirs)), place, tokens)


def _listed(tokens: Sequence[str]) -> str:
    return " ".join(map(repr, tokens)) or "the end"
