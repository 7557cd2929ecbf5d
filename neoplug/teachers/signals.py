"""The two signals that losses read: logits from hidden states, and sparse entries. N answer tokens, H hidden size."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from neoplug.data.batch import to_device
from neoplug.models.head import Head
from neoplug.teachers.base import LOGITS, SPARSE, SparseDistributions


@dataclass(eq=False)
class StatesSignal:
    """The logits of a model, computed block by block from the hidden states [N, H] of the answer tokens."""

    states: Tensor
    head: Head
    provides: ClassVar[frozenset[str]] = frozenset({LOGITS})

    @cached_property
    def _logits_fn(self) -> Callable[[Tensor], Tensor]:
        return self.head.prepare_logits_fn()

    @torch.no_grad()
    def logits(self, rows: slice) -> Tensor:
        """Return float32 logits [n, V] on the head's device."""
        return self._logits_fn(self.states[rows])

    @property
    def nbytes(self) -> int:
        """The bytes that the signal holds, without the head."""
        return self.states.nbytes

    def select(self, tokens: Tensor) -> "StatesSignal":
        """Return the signal of some of the answer tokens: their indices [n] int64, on any device."""
        return StatesSignal(self.states[to_device(tokens, self.states.device)], self.head)

    def to(self, device: torch.device) -> "StatesSignal":
        """Return the signal with its states on `device`, where the head must be."""
        return StatesSignal(to_device(self.states, device), self.head)


@dataclass(frozen=True, eq=False)
class EntriesSignal:
    """A few entries of the teacher's distribution for each of N answer tokens."""

    entries: SparseDistributions
    provides: ClassVar[frozenset[str]] = frozenset({SPARSE})

    def sparse(self, rows: slice) -> SparseDistributions:
        """Return the entries of a block of answer tokens."""
        return self.entries[rows]

    @property
    def nbytes(self) -> int:
        """The bytes that the signal holds."""
        return sum(part.nbytes for part in self.entries.arguments().values() if part is not None)

    def select(self, tokens: Tensor) -> "EntriesSignal":
        """Return the signal of some of the answer tokens: their indices [n] int64, on any device."""
        return EntriesSignal(self.entries[to_device(tokens, self.entries.ids.device)])

    def to(self, device: torch.device) -> "EntriesSignal":
        """Return the signal with its entries on `device`."""
        return EntriesSignal(self.entries.to(device))
