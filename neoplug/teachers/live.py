"""A teacher that is a model in memory: one forward without gradient for each batch.

N answer tokens of a batch, n of a block, H hidden size, V shared vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from neoplug.data.batch import Batch
from neoplug.models.head import Head
from neoplug.models.language_model import LanguageModel
from neoplug.teachers.base import LOGITS


@dataclass(eq=False)
class LiveSignal:
    """The logits of a model, computed block by block from the hidden states [N, H] of the answer tokens."""

    states: Tensor
    head: Head
    provides: ClassVar[frozenset[str]] = frozenset({LOGITS})

    @cached_property
    def _logits_fn(self) -> Callable[[Tensor], Tensor]:
        return self.head.prepare_logits_fn()

    @torch.no_grad()
    def logits(self, rows: slice) -> Tensor:
        """Return float32 logits [n, V] on the teacher's device."""
        return self._logits_fn(self.states[rows])


@dataclass(frozen=True, eq=False)
class LiveTeacher:
    """A `Teacher` around a model in memory."""

    model: LanguageModel

    @torch.no_grad()
    def signal(self, batch: Batch) -> LiveSignal:
        """Return the signal of the model, which is run on the teacher's text of the batch, on the model's device."""
        return LiveSignal(self.model.hidden(batch.for_teacher().to(self.model.device)), self.model.head)

    def prefetch(self, batch: Batch) -> None:
        """Do nothing: the forward of the next batch would compete with the student for the device."""

    def describe(self) -> dict[str, Any]:
        """Return the model's class, device, dtype of computation and layout."""
        dtype = self.model.autocast or next(p.dtype for p in self.model.module.parameters() if p.is_floating_point())
        return {
            "kind": "live",
            "class": type(self.model.module).__name__,
            "device": str(self.model.device),
            "dtype": str(dtype).removeprefix("torch."),
            "layout": self.model.layout,
        }
