"""The check of `edit_documents`: the documents of a training row can be read by both models, and their tokens exist.

Documents are numpy arrays on the CPU, so reading their values synchronises nothing. numpy is imported where an array is
checked, since the hook `check` is called without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from neoplug.answers.plain_values import Refusal

if TYPE_CHECKING:
    import numpy as np

    from neoplug.data.batch import Document

STORED = "the teacher's output is stored, for the original text"


def read_documents(
    answer: Any,
    before: Sequence[Document],
    vocabulary: Any = None,
    longest: int | None = None,
    teacher_is_stored: bool = False,
) -> tuple[Document, ...]:
    """Return the documents of an answer.

    before      the documents that the hook was given, at least one
    vocabulary  that the models share, a `models.vocabulary.Vocabulary`; None: any token exists
    longest     tokens of the longest text of the training data; None: a text may have any length
    teacher_is_stored  whether the teacher's output was stored for the texts that it reads in `before`

    Raises Refusal for what a model would misread.
    """
    if not isinstance(answer, list | tuple):
        raise Refusal.of(answer, "a list of documents is expected")
    kind, rows = type(before[0]), {document.row for document in before}
    for document in answer:
        if not isinstance(document, kind):
            raise Refusal.of(document, "a neoplug.Document is expected in the list")
        _validate_texts(document)
        if document.row not in rows:
            what = (
                f"with a document of row {document.row}, where the rows of the documents that it was given are expected"
            )
            raise Refusal(what, "rows name the source in errors", "make it with `dataclasses.replace`")
        if longest is not None and document.max_text_length > longest:
            what = f"with a document of {document.max_text_length} tokens, where at most {longest} are expected"
            raise Refusal(what, "that is the longest of the training data, which memory and positions are planned for")
    _validate_tokens(answer, before, vocabulary)
    if teacher_is_stored:
        stored = {document.as_teacher().content_hash for document in before}
        if not all(document.as_teacher().content_hash in stored for document in answer):
            what = "changed the text that the teacher reads"
            raise Refusal(what, STORED, "leave the plugin out, or leave `teacher.cache` out")
    return tuple(answer)


def _validate_texts(document: Document) -> None:
    """Refuse a document that is not one text, or two, with the same number of answer tokens in both."""
    _validate_text(document.input_ids, document.loss_mask, "input_ids", "loss_mask")
    if document.teacher_ids is None and document.teacher_loss_mask is None:
        return
    _validate_text(document.teacher_ids, document.teacher_loss_mask, "teacher_ids", "teacher_loss_mask")
    if (found := document.as_teacher().answer_tokens) != document.answer_tokens:
        what = f"with {document.answer_tokens} answer tokens in a document, and {found} in its teacher's text"
        raise Refusal(what, "teacher and student are compared at the same answer tokens")


def _validate_text(ids: Any, mask: Any, *names: str) -> None:
    """Refuse what is no [L] int64 with a mask [L] bool, or has no token."""
    import numpy as np

    for value, kind, name in zip((ids, mask), ("int64", "bool"), names, strict=True):
        if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype != kind:
            raise Refusal.of(value, f"a numpy array [L] of {kind} is expected", name)
    if len(ids) != len(mask):
        raise Refusal(f"with {len(ids)} tokens in `{names[0]}` and {len(mask)} in `{names[1]}`")
    if not len(ids):
        raise Refusal(f"with a document that has no token in `{names[0]}`", fix="leave the document out of the list")


def _validate_tokens(after: Sequence[Document], before: Sequence[Document], vocabulary: Any) -> None:
    """Refuse tokens that the hook introduced and that do not exist in the shared vocabulary."""
    import torch

    known = set().union(*(ids.tolist() for ids in _texts(before)))
    new = sorted(set().union(*(ids.tolist() for ids in _texts(after))) - known)
    unknown = new[:1] if new and new[0] < 0 else vocabulary.unshared(torch.tensor(new)) if new and vocabulary else []
    if unknown:
        raise Refusal(f"with {unknown[0]} in a document, which is no token", "the models share no token of this id")


def _texts(documents: Sequence[Document]) -> Iterator[np.ndarray]:
    for document in documents:
        yield document.input_ids
        if document.teacher_ids is not None:
            yield document.teacher_ids
