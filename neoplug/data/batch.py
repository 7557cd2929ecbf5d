"""Documents in, tensors out: a micro-batch is a run of documents, and a layout is how a model reads them.

T tokens and N answer tokens of a batch; B rows and L columns of a layout. The answer token at index i of a document is
predicted at index i - 1: this shift happens here and nowhere else.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Layout = Literal["varlen", "flat", "block", "padded"]
Windows = Mapping[str, int | None]  # kind of attention layer -> tokens that it looks back over, itself included
FULL_ATTENTION: Windows = {"full_attention": None}

TENSORS = ("input_ids", "positions", "labels", "rows")


@dataclass(frozen=True, eq=False)
class Document:
    """One tokenised document, or one window of a long one.

    input_ids       [L] int64
    loss_mask       [L] bool: the tokens that are trained on; the first never is, since nothing predicts it
    row             number of its row in the source
    teacher_ids     [M] int64: what the teacher reads instead, where it has a prompt of its own
    teacher_loss_mask  [M] bool: the same answer tokens in `teacher_ids`, one for one
    number          its index among the training documents of a run, or among the held-out ones, in the order of the
                    token store; each window of a row has its own. -1 for a document that is in neither
    """

    input_ids: np.ndarray
    loss_mask: np.ndarray
    row: int
    teacher_ids: np.ndarray | None = None
    teacher_loss_mask: np.ndarray | None = None
    number: int = -1

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def answer_tokens(self) -> int:
        """Count the tokens that the objective scores."""
        return int(np.count_nonzero(self.loss_mask[1:]))

    @property
    def longest(self) -> int:
        """Count the tokens of the longer of what the student and the teacher read."""
        return max(len(self), 0 if self.teacher_ids is None else len(self.teacher_ids))

    @cached_property
    def content_hash(self) -> str:
        """Return the sha256, in hexadecimal, of what the student and the teacher read; computed on first use.

        It depends on neither `row` nor `number`: equal content has an equal hash in every store, split, seed and run.
        Format 1: the bytes of "neoplug.Document 1", then of the student's text and, only where the teacher's is
        different, of the teacher's: its length L as <i8, its ids as <i8 [L], its mask without the first token as u1
        [L - 1]. A change of this format needs a new number in it, since stored data is found by this hash.
        """
        digest = hashlib.sha256(b"neoplug.Document 1")
        texts = dict.fromkeys(_content(text) for text in (self, self.as_teacher()))
        for part in texts:
            digest.update(part)
        return digest.hexdigest()

    def as_teacher(self) -> "Document":
        """Return the document as the teacher reads it."""
        if self.teacher_ids is None or self.teacher_loss_mask is None:
            return self
        return Document(self.teacher_ids, self.teacher_loss_mask, self.row, number=self.number)


@dataclass(frozen=True, eq=False)
class TeacherText:
    """What the teacher reads of a batch where it has prompts of its own: the same answers behind them.

    input_ids  [S] int64
    lengths    how many tokens each document has; they add up to S
    places     [T] int64: for a position that predicts an answer token, the position here that predicts the same one
    """

    input_ids: Tensor
    lengths: list[int]
    places: Tensor


@dataclass(eq=False)
class Batch:
    """A micro-batch: its documents one after the other, and the answer tokens that the objective scores.

    input_ids  [T] int64
    lengths    how many tokens each document has; they add up to T
    positions  [N] int64: index in `input_ids` of the position that predicts each answer token
    labels     [N] int64: the answer tokens
    rows       [N] int64: the source row of each answer token
    teacher    what the teacher reads instead; None where it reads the same
    in_answer  [N] int64: which token of its answer each answer token is, from 0; None unless a plugin weights tokens
    documents  the documents, in the order of `lengths`; () in a batch that was not made by `collate`
    """

    input_ids: Tensor
    lengths: list[int]
    positions: Tensor
    labels: Tensor
    rows: Tensor
    teacher: TeacherText | None = None
    in_answer: Tensor | None = None
    documents: tuple[Document, ...] = ()

    @property
    def tokens(self) -> int:
        """Count the tokens, T."""
        return len(self.input_ids)

    @property
    def answer_tokens(self) -> int:
        """Count the answer tokens, N."""
        return len(self.labels)

    @property
    def document_index(self) -> Tensor:
        """Return [N] int64: for each answer token the index in `documents` of the document that it belongs to.

        Computed from the present `positions`, so that it holds after a plugin dropped answer tokens; on the batch's
        device, without a synchronisation.
        """
        return self._document_of_token()[self.positions]

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on `device`."""
        tensors: dict[str, Any] = {name: _sent(getattr(self, name), device) for name in TENSORS}
        in_answer = None if self.in_answer is None else _sent(self.in_answer, device)
        return replace(self, **tensors, teacher=self.teacher and _moved(self.teacher, device), in_answer=in_answer)

    def for_teacher(self) -> "Batch":
        """Return the batch as the teacher reads it: the same answer tokens, in the same order."""
        if self.teacher is None:
            return self
        return replace(
            self,
            input_ids=self.teacher.input_ids,
            lengths=self.teacher.lengths,
            positions=self.teacher.places[self.positions],
            teacher=None,
        )

    def layout(
        self, name: Layout, pad_token_id: int = 0, windows: Windows = FULL_ATTENTION, dtype: torch.dtype = torch.float32
    ) -> tuple[dict[str, Any], Tensor]:
        """Return what a model is called with, and `positions` as indices in its flattened [B * L] output.

        varlen  one row [1, T]; `position_ids` restart with each document and the documents' lengths stand for a mask,
                [1, 1, 1, documents]: for models whose attention reads them (`neoplug.models.varlen_attention`)
        flat    the same row without a mask: most models then keep documents apart (one of ones would make them leak)
        block   the same row with a mask [1, 1, T, T] that attention adds to its scores: 0 inside each document's causal
                triangle, `dtype`'s smallest number outside; a mask a kind of layer where the model has several, since
                whoever brings a mask of four dimensions brings the window too
        padded  a row a document [B, L] with a mask [B, L]; positions are left to the model, prompt methods shift them
        """
        if name == "padded":
            return self._padded(pad_token_id)
        starts = [torch.arange(length, device=self.input_ids.device) for length in self.lengths]
        mask: Tensor | dict[str, Tensor] | None = None
        if name == "varlen":
            mask = torch.tensor(self.lengths)[None, None, None]
        elif name == "block":
            mask = self._block_masks(windows, dtype)
        inputs = {"input_ids": self.input_ids[None], "position_ids": torch.cat(starts)[None], "use_cache": False}
        return {**inputs, "attention_mask": mask}, self.positions

    def _padded(self, pad_token_id: int) -> tuple[dict[str, Any], Tensor]:
        longest, device = max(self.lengths), self.input_ids.device
        gaps = torch.tensor([longest - length for length in self.lengths])
        shift = torch.repeat_interleave(gaps.cumsum(0) - gaps, torch.tensor(self.lengths))  # [T] padding before a token
        place = _sent(torch.arange(self.tokens) + shift, device)
        input_ids = self.input_ids.new_full((len(self.lengths) * longest,), pad_token_id)
        mask = torch.zeros_like(input_ids)
        inputs = {
            "input_ids": input_ids.index_copy(0, place, self.input_ids).view(-1, longest),
            "attention_mask": mask.index_fill(0, place, 1).view(-1, longest),
            "use_cache": False,
        }
        return inputs, place[self.positions]

    def _block_masks(self, windows: Windows, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
        document = self._document_of_token()
        seen = (document[:, None] == document).tril()
        masks = {kind: additive_mask(seen, window, dtype) for kind, window in windows.items()}
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _document_of_token(self) -> Tensor:
        """Return [T] int64: the index of the document that each token belongs to."""
        numbers = torch.repeat_interleave(torch.arange(len(self.lengths)), torch.tensor(self.lengths))
        return _sent(numbers, self.input_ids.device)


def additive_mask(seen: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """Return what attention adds to its scores, [1, 1, L, L]: 0 where a token is seen, [L, L], and in the window."""
    inside = seen if window is None else seen.triu(1 - window)
    hidden = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return hidden.masked_fill_(~inside, torch.finfo(dtype).min)[None, None]


def collate(documents: Sequence[Document]) -> Batch:
    """Join documents to a batch on the CPU."""
    return Batch(
        input_ids=_joined([document.input_ids for document in documents]),
        lengths=[len(document) for document in documents],
        positions=_positions(documents),
        labels=_joined([document.input_ids[1:][document.loss_mask[1:]] for document in documents]),
        rows=_joined([np.full(document.answer_tokens, document.row) for document in documents]),
        teacher=_teacher_text(documents),
        documents=tuple(documents),
    )


def _content(document: Document) -> bytes:
    """Return the bytes of a text for its content hash; the first token's mask means nothing and is left out."""
    ids, mask = document.input_ids.astype("<i8"), document.loss_mask[1:].astype("u1")
    return len(document).to_bytes(8, "little") + ids.tobytes() + mask.tobytes()


def positions_in_answers(documents: Sequence[Document]) -> Tensor:
    """Return [T]: for a position that predicts an answer token, which token of its answer this is, from 0.

    An answer is a run of answer tokens with none between that is not scored: an assistant's turn with what ends it, or
    where all is scored the document. A window of a long document counts from its own first answer token.
    """
    return _joined([np.append(_places(document.loss_mask[1:]), 0) for document in documents])


def _places(scored: np.ndarray) -> np.ndarray:
    numbers = np.arange(len(scored))
    return numbers - np.maximum.accumulate(np.where(scored, 0, numbers + 1))  # since the last that is not scored


def _teacher_text(documents: Sequence[Document]) -> TeacherText | None:
    if all(document.teacher_ids is None for document in documents):
        return None
    theirs = [document.as_teacher() for document in documents]
    places = torch.zeros(sum(map(len, documents)), dtype=torch.int64)
    places[_positions(documents)] = _positions(theirs)
    return TeacherText(_joined([document.input_ids for document in theirs]), list(map(len, theirs)), places)


def _positions(documents: Sequence[Document]) -> Tensor:
    """Return [N]: where the documents, one after the other, predict their answer tokens."""
    starts = np.cumsum([0, *map(len, documents[:-1])])
    return _joined([np.flatnonzero(d.loss_mask[1:]) + start for d, start in zip(documents, starts, strict=True)])


def _joined(arrays: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays))


def _moved(text: TeacherText, device: torch.device | str) -> TeacherText:
    ids, places = (_sent(tensor, device) for tensor in (text.input_ids, text.places))
    return TeacherText(ids, text.lengths, places)


def _sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor to `device`; only to the CPU does the host wait, which would read what is not there yet."""
    return tensor.to(device, non_blocking=torch.device(device).type != "cpu")
