"""Documents, micro-batches of them, and the layouts in which a batch is given to a model.

T tokens and N answer tokens of a batch; B rows and L columns of a layout. The answer token at index i of a document is
predicted at index i - 1: this shift happens here and nowhere else.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Layout = Literal["varlen", "flat", "block", "padded"]
Windows = Mapping[str, int | None]  # kind of attention layer -> size of its sliding window in tokens; None is unlimited
FULL_ATTENTION: Windows = {"full_attention": None}

TENSORS = ("input_ids", "positions", "labels", "rows")


@dataclass(frozen=True, eq=False)
class Document:
    """One tokenised document, or one window of a long one.

    input_ids       [L] int64
    loss_mask       [L] bool: the answer tokens, which the objective is computed on; the first token's value is ignored,
                    since nothing predicts that token
    row             index of its row among those of all training sources, one after the other, or of the eval_source
    teacher_ids     [M] int64: the teacher's input where it has its own chat template; None where it is `input_ids`
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
        """Return the number of tokens that the objective is computed on."""
        return int(np.count_nonzero(self.loss_mask[1:]))

    @property
    def max_text_length(self) -> int:
        """Return the length in tokens of the student's or the teacher's text, whichever is longer."""
        return max(len(self), 0 if self.teacher_ids is None else len(self.teacher_ids))

    @cached_property
    def content_hash(self) -> str:
        """Return the sha256, in hexadecimal, of the student's and the teacher's text; computed on first use.

        It depends on neither `row` nor `number`: equal content has an equal hash in every store, split, seed and run.
        Format 1: the bytes of "neoplug.Document 1", then of the student's text and, only where the teacher's is
        different, of the teacher's: its length L as <i8, its ids as <i8 [L], its mask without the first token as u1
        [L - 1]. A change of this format needs a new number in it, since stored data is found by this hash.
        """
        digest = hashlib.sha256(b"neoplug.Document 1")
        distinct_texts = dict.fromkeys(_hashed_bytes(text) for text in (self, self.as_teacher()))
        for text in distinct_texts:
            digest.update(text)
        return digest.hexdigest()

    def as_teacher(self) -> "Document":
        """Return the document with the teacher's text in place of the student's."""
        if self.teacher_ids is None or self.teacher_loss_mask is None:
            return self
        return Document(self.teacher_ids, self.teacher_loss_mask, self.row, number=self.number)


@dataclass(frozen=True, eq=False)
class TeacherText:
    """The teacher's texts of a batch, where it has its own chat template: other prompts, the same answers.

    input_ids     [S] int64
    lengths       tokens of each document; they add up to S
    position_map  [T] int64: for each position of the student's batch that predicts an answer token, the position in
                  `input_ids` that predicts the same one; any elsewhere
    """

    input_ids: Tensor
    lengths: list[int]
    position_map: Tensor


@dataclass(eq=False)
class Batch:
    """A micro-batch: its documents concatenated, and the answer tokens that the objective is computed on.

    input_ids  [T] int64
    lengths    tokens of each document; they add up to T
    positions  [N] int64: index in `input_ids` of the position that predicts each answer token
    labels     [N] int64: the answer tokens
    rows       [N] int64: `Document.row` of each answer token's document
    teacher    the teacher's texts; None where it reads the student's
    in_answer  [N] int64: index of each answer token within its answer, from 0; None unless a plugin weights tokens
    documents  the documents, in the order of `lengths`; () in a batch that was not made by `collate`
    epoch      of training, from 0; None for a batch that is not trained on
    """

    input_ids: Tensor
    lengths: list[int]
    positions: Tensor
    labels: Tensor
    rows: Tensor
    teacher: TeacherText | None = None
    in_answer: Tensor | None = None
    documents: tuple[Document, ...] = ()
    epoch: int | None = None

    @property
    def tokens(self) -> int:
        """Return the number of tokens, T."""
        return len(self.input_ids)

    @property
    def answer_tokens(self) -> int:
        """Return the number of answer tokens, N."""
        return len(self.labels)

    @property
    def document_index(self) -> Tensor:
        """Return [N] int64: for each answer token the index in `documents` of the document that it belongs to.

        It is computed from the current `positions`, and is therefore still correct after a plugin has removed answer
        tokens. It is on the batch's device and needs no synchronisation.
        """
        return self._document_of_token()[self.positions]

    @property
    def kept(self) -> Tensor | None:
        """Return [N] int64 on the CPU: the index of each answer token among all answer tokens of `documents`.

        A plugin may have removed some of them; None where all are left.
        """
        every, left = _positions(self.documents), self.positions.cpu().contiguous()
        return None if left.equal(every) else torch.searchsorted(every, left)

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on `device`."""
        return self._with_tensors(partial(to_device, device=device))

    def pin_memory(self) -> "Batch":
        """Return the batch in memory that the system does not move: the host does not take part in copies to a GPU."""
        return self._with_tensors(Tensor.pin_memory)

    def _with_tensors(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch with `function` of each of its tensors."""
        tensors: dict[str, Any] = {name: function(getattr(self, name)) for name in TENSORS}
        in_answer = None if self.in_answer is None else function(self.in_answer)
        text = self.teacher
        if text is not None:
            text = TeacherText(function(text.input_ids), text.lengths, function(text.position_map))
        return replace(self, **tensors, teacher=text, in_answer=in_answer)

    def for_teacher(self) -> "Batch":
        """Return the batch with the teacher's texts: the same answer tokens, in the same order."""
        if self.teacher is None:
            return self
        return replace(
            self,
            input_ids=self.teacher.input_ids,
            lengths=self.teacher.lengths,
            positions=self.teacher.position_map[self.positions],
            teacher=None,
        )

    def layout(
        self, name: Layout, pad_token_id: int = 0, windows: Windows = FULL_ATTENTION, dtype: torch.dtype = torch.float32
    ) -> tuple[dict[str, Any], Tensor]:
        """Return keyword arguments of a model's forward, and `positions` as indices in its flattened [B * L] output.

        varlen  one row [1, T]; `position_ids` restart with each document, and the attention mask is the documents'
                lengths, [1, 1, 1, documents], as attention of `neoplug.models.varlen_attention` reads them
        flat    the same row without a mask: most models then isolate documents by their `position_ids` (a mask of ones
                would let attention cross documents)
        block   the same row with an additive attention mask [1, 1, T, T]: 0 inside each document's causal triangle,
                `dtype`'s smallest number outside; where the model has several kinds of layers, one mask for each kind,
                since transformers applies no sliding window to a mask of four dimensions
        padded  one row for each document [B, L] with a mask [B, L]; without `position_ids`, since prompt methods shift
                positions
        """
        if name == "padded":
            return self._padded(pad_token_id)
        position_ids = torch.cat([torch.arange(length, device=self.input_ids.device) for length in self.lengths])
        mask: Tensor | dict[str, Tensor] | None = None
        if name == "varlen":
            mask = torch.tensor(self.lengths)[None, None, None]
        elif name == "block":
            mask = self._block_masks(windows, dtype)
        inputs = {"input_ids": self.input_ids[None], "position_ids": position_ids[None], "use_cache": False}
        return {**inputs, "attention_mask": mask}, self.positions

    def _padded(self, pad_token_id: int) -> tuple[dict[str, Any], Tensor]:
        longest, device = max(self.lengths), self.input_ids.device
        gaps = torch.tensor([longest - length for length in self.lengths])
        shift = torch.repeat_interleave(gaps.cumsum(0) - gaps, torch.tensor(self.lengths))  # [T] padding before a token
        index = to_device(torch.arange(self.tokens) + shift, device)
        input_ids = self.input_ids.new_full((len(self.lengths) * longest,), pad_token_id)
        mask = torch.zeros_like(input_ids)
        inputs = {
            "input_ids": input_ids.index_copy(0, index, self.input_ids).view(-1, longest),
            "attention_mask": mask.index_fill(0, index, 1).view(-1, longest),
            "use_cache": False,
        }
        return inputs, index[self.positions]

    def _block_masks(self, windows: Windows, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
        document = self._document_of_token()
        visible = (document[:, None] == document).tril()
        masks = {kind: additive_mask(visible, window, dtype) for kind, window in windows.items()}
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _document_of_token(self) -> Tensor:
        """Return [T] int64: the index of the document that each token belongs to."""
        numbers = torch.repeat_interleave(torch.arange(len(self.lengths)), torch.tensor(self.lengths))
        return to_device(numbers, self.input_ids.device)


def additive_mask(visible: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """Return a mask that attention adds to its scores, [1, 1, L, L]: 0 where attended, else `dtype`'s smallest number.

    visible  [L, L] bool: the causal pairs of a query and a key
    window   size of the sliding window in tokens; None: unlimited
    """
    attended = visible if window is None else visible.triu(1 - window)
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~attended, torch.finfo(dtype).min)[None, None]


def collate(documents: Sequence[Document]) -> Batch:
    """Return a batch of the documents, on the CPU."""
    return Batch(
        input_ids=_concatenated([document.input_ids for document in documents]),
        lengths=[len(document) for document in documents],
        positions=_positions(documents),
        labels=_concatenated([document.input_ids[1:][document.loss_mask[1:]] for document in documents]),
        rows=_concatenated([np.full(document.answer_tokens, document.row) for document in documents]),
        teacher=_teacher_text(documents),
        documents=tuple(documents),
    )


def concatenated(batches: Sequence[Batch]) -> Batch:
    """Return one batch of the documents of several on the CPU, each as plugins left it."""
    starts = np.cumsum([0, *(batch.tokens for batch in batches[:-1])]).tolist()
    return Batch(
        input_ids=torch.cat([batch.input_ids for batch in batches]),
        lengths=[length for batch in batches for length in batch.lengths],
        positions=torch.cat([batch.positions + start for batch, start in zip(batches, starts, strict=True)]),
        labels=torch.cat([batch.labels for batch in batches]),
        rows=torch.cat([batch.rows for batch in batches]),
        teacher=_concatenated_texts(batches) if any(batch.teacher for batch in batches) else None,
        documents=tuple(document for batch in batches for document in batch.documents),
    )


def _concatenated_texts(batches: Sequence[Batch]) -> TeacherText:
    """Return the teacher's texts of several batches; of one without, the teacher reads the student's."""
    texts = [
        batch.teacher or TeacherText(batch.input_ids, batch.lengths, torch.arange(batch.tokens)) for batch in batches
    ]
    starts = np.cumsum([0, *(len(text.input_ids) for text in texts[:-1])]).tolist()
    return TeacherText(
        torch.cat([text.input_ids for text in texts]),
        [length for text in texts for length in text.lengths],
        torch.cat([text.position_map + start for text, start in zip(texts, starts, strict=True)]),
    )


def _hashed_bytes(document: Document) -> bytes:
    """Return the bytes of the student's text that enter the content hash; the first token's mask is not among them."""
    ids, mask = document.input_ids.astype("<i8"), document.loss_mask[1:].astype("u1")
    return len(document).to_bytes(8, "little") + ids.tobytes() + mask.tobytes()


def positions_in_answers(documents: Sequence[Document]) -> Tensor:
    """Return [T] int64: for each position that predicts an answer token, that token's index within its answer.

    An answer is a maximal run of consecutive answer tokens: an assistant turn with its end token, or the whole document
    where `train_on` is `all`. In a window of a long document, the index counts from the window's first answer token.
    """
    return _concatenated([np.append(_index_in_run(document.loss_mask[1:]), 0) for document in documents])


def _index_in_run(mask: np.ndarray) -> np.ndarray:
    """Return [L] int64: for each True of `mask` [L], its index within its run of consecutive Trues; -1 elsewhere."""
    indices = np.arange(len(mask))
    return indices - np.maximum.accumulate(np.where(mask, 0, indices + 1))


def _teacher_text(documents: Sequence[Document]) -> TeacherText | None:
    if all(document.teacher_ids is None for document in documents):
        return None
    texts = [document.as_teacher() for document in documents]
    position_map = torch.zeros(sum(map(len, documents)), dtype=torch.int64)
    position_map[_positions(documents)] = _positions(texts)
    return TeacherText(_concatenated([text.input_ids for text in texts]), list(map(len, texts)), position_map)


def _positions(documents: Sequence[Document]) -> Tensor:
    """Return [N] int64: the positions in the concatenated documents that predict the answer tokens."""
    starts = np.cumsum([0, *map(len, documents[:-1])])
    return _concatenated([np.flatnonzero(d.loss_mask[1:]) + start for d, start in zip(documents, starts, strict=True)])


def _concatenated(arrays: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays))


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor to `device`. Only a copy to the CPU blocks: the host could read it before it is complete."""
    return tensor.to(device, non_blocking=torch.device(device).type != "cpu")
