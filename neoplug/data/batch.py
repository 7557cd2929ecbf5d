"""Documents in, tensors out: how the documents of a micro-batch are laid out for a model to run.

B rows and L columns of a batch, N answer tokens in it. An answer token at column i is predicted at column i - 1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
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
    """A micro-batch as a model runs it, and the answer tokens that the objective scores.

    input_ids       [B, L] int64
    position_ids    [B, L] int64, restarting at 0 with each document
    attention_mask  None (one flat row, isolated by position_ids) | [1, 1, L, L] bool (a block for each document)
                    | [B, L] int64 (padded rows)
    positions       [N] int64: index in the flattened [B * L] of the position that predicts each answer token
    labels          [N] int64: the answer tokens
    rows            [N] int64: the source row of each answer token
    tokens          how many real tokens it holds, padding excluded
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    positions: Tensor
    labels: Tensor
    rows: Tensor
    tokens: int

    @property
    def answer_tokens(self) -> int:
        """Count the answer tokens, N."""
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on `device`."""
        moved = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)

    def model_inputs(self) -> dict[str, Any]:
        """Return what the model is called with. Padded rows leave the positions to the model: prompt methods shift them."""
        inputs: dict[str, Any] = {"input_ids": self.input_ids, "attention_mask": self.attention_mask, "use_cache": False}
        if self.attention_mask is None or self.attention_mask.dim() == 4:
            inputs["position_ids"] = self.position_ids
        return inputs


def collate(documents: Sequence[Document], layout: Layout, pad_token_id: int = 0) -> Batch:
    """Lay documents out: `flat` one unpadded row, `block` the same with a block mask, `padded` a row each."""
    if layout == "padded":
        return _padded(documents, pad_token_id)
    lengths = [len(document) for document in documents]
    starts = np.cumsum([0, *lengths[:-1]])
    input_ids = torch.from_numpy(np.concatenate([document.input_ids for document in documents]))[None]
    position_ids = torch.cat([torch.arange(length) for length in lengths])[None]
    mask = _block_mask(lengths) if layout == "block" else None
    return Batch(input_ids, position_ids, mask, *_answers(documents, starts), tokens=sum(lengths))


def _padded(documents: Sequence[Document], pad_token_id: int) -> Batch:
    longest = max(map(len, documents))
    input_ids = torch.full((len(documents), longest), pad_token_id, dtype=torch.int64)
    mask = torch.zeros_like(input_ids)
    for row, document in enumerate(documents):
        input_ids[row, : len(document)] = torch.from_numpy(document.input_ids)
        mask[row, : len(document)] = 1
    position_ids = torch.arange(longest).expand(len(documents), -1).contiguous()
    starts = np.arange(len(documents)) * longest
    return Batch(input_ids, position_ids, mask, *_answers(documents, starts), tokens=sum(map(len, documents)))


def _answers(documents: Sequence[Document], starts: np.ndarray) -> Iterator[Tensor]:
    """Yield positions, labels and rows of all answer tokens; the shift by one happens here and nowhere else."""
    found = [np.flatnonzero(document.scored[1:]) for document in documents]
    yield torch.from_numpy(np.concatenate([at + start for at, start in zip(found, starts, strict=True)]))
    yield torch.from_numpy(np.concatenate([d.input_ids[at + 1] for d, at in zip(documents, found, strict=True)]))
    yield torch.from_numpy(np.concatenate([np.full(len(at), d.row) for d, at in zip(documents, found, strict=True)]))


def _block_mask(lengths: Sequence[int]) -> Tensor:
    """Return [1, 1, L, L] bool: causal inside each document, nothing across."""
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return ((document[:, None] == document[None]) & torch.ones(len(document), len(document)).tril().bool())[None, None]
