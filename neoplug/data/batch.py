"""Documents in, tensors out: a micro-batch is a run of documents, and a layout is how a model reads them.

T tokens and N answer tokens of a batch; B rows and L columns of a layout. The answer token at index i of a document is
predicted at index i - 1: this shift happens here and nowhere else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Layout = Literal["flat", "block", "padded"]


@dataclass(frozen=True, eq=False)
class Document:
    """One tokenised document, or one window of a long one.

    input_ids  [L] int64
    scored     [L] bool: the tokens that are trained on; the first never is, since nothing predicts it
    row        number of its row in the source
    """

    input_ids: np.ndarray
    scored: np.ndarray
    row: int

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def answer_tokens(self) -> int:
        """Count the tokens that the objective scores."""
        return int(self.scored[1:].sum())


@dataclass(eq=False)
class Batch:
    """A micro-batch: its documents one after the other, and the answer tokens that the objective scores.

    input_ids  [T] int64
    lengths    how many tokens each document has; they add up to T
    positions  [N] int64: index in `input_ids` of the position that predicts each answer token
    labels     [N] int64: the answer tokens
    rows       [N] int64: the source row of each answer token
    """

    input_ids: Tensor
    lengths: list[int]
    positions: Tensor
    labels: Tensor
    rows: Tensor

    @property
    def tokens(self) -> int:
        """Count the tokens, T."""
        return len(self.input_ids)

    @property
    def answer_tokens(self) -> int:
        """Count the answer tokens, N."""
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on `device`."""
        names = ("input_ids", "positions", "labels", "rows")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})

    def layout(self, name: Layout, pad_token_id: int = 0) -> tuple[dict[str, Any], Tensor]:
        """Return what a model is called with, and `positions` as indices in its flattened [B * L] output.

        flat    one row [1, T]; `position_ids` restart with each document and no mask is given: most models then keep
                documents apart (an all-ones mask would make them leak)
        block   the same row with a mask [1, 1, T, T], True inside each document's causal triangle
        padded  a row a document [B, L] with a mask [B, L]; positions are left to the model, prompt methods shift them
        """
        if name == "padded":
            return self._padded(pad_token_id)
        starts = [torch.arange(length, device=self.input_ids.device) for length in self.lengths]
        inputs = {
            "input_ids": self.input_ids[None],
            "position_ids": torch.cat(starts)[None],
            "attention_mask": self._block_mask() if name == "block" else None,
            "use_cache": False,
        }
        return inputs, self.positions

    def _padded(self, pad_token_id: int) -> tuple[dict[str, Any], Tensor]:
        longest, device = max(self.lengths), self.input_ids.device
        gaps = torch.tensor([longest - length for length in self.lengths])
        shift = torch.repeat_interleave(gaps.cumsum(0) - gaps, torch.tensor(self.lengths))  # [T] padding before a token
        place = (torch.arange(self.tokens) + shift).to(device)
        input_ids = self.input_ids.new_full((len(self.lengths) * longest,), pad_token_id)
        mask = torch.zeros_like(input_ids)
        inputs = {
            "input_ids": input_ids.index_copy(0, place, self.input_ids).view(-1, longest),
            "attention_mask": mask.index_fill(0, place, 1).view(-1, longest),
            "use_cache": False,
        }
        return inputs, place[self.positions]

    def _block_mask(self) -> Tensor:
        numbers = torch.arange(len(self.lengths))
        document = torch.repeat_interleave(numbers, torch.tensor(self.lengths)).to(self.input_ids.device)
        return (document[:, None] == document[None]).tril()[None, None]


def collate(documents: Sequence[Document]) -> Batch:
    """Join documents to a batch on the CPU."""
    lengths = [len(document) for document in documents]
    starts = np.cumsum([0, *lengths[:-1]])
    before = [np.flatnonzero(document.scored[1:]) for document in documents]  # one before each scored token
    labels = [document.input_ids[at + 1] for document, at in zip(documents, before, strict=True)]
    rows = [np.full(len(at), document.row) for document, at in zip(documents, before, strict=True)]
    return Batch(
        input_ids=torch.from_numpy(np.concatenate([document.input_ids for document in documents])),
        lengths=lengths,
        positions=torch.from_numpy(np.concatenate([at + start for at, start in zip(before, starts, strict=True)])),
        labels=torch.from_numpy(np.concatenate(labels)),
        rows=torch.from_numpy(np.concatenate(rows)),
    )
