"""A teacher that is a model in memory: one forward without gradient for each batch."""

from dataclasses import dataclass
from typing import Any

import torch

from neoplug.data.batch import Batch
from neoplug.models.language_model import LanguageModel
from neoplug.teachers.signals import StatesSignal


@dataclass(frozen=True, eq=False)
class LiveTeacher:
    """A `Teacher` around a model in memory.

    kind  of the model, for the log
    """

    model: LanguageModel
    kind: str = "live"

    @torch.no_grad()
    def signal(self, batch: Batch) -> StatesSignal:
        """Return the signal of the model, which is run on the teacher's text of the batch, on the model's device."""
        return StatesSignal(self.model.hidden(batch.for_teacher().to(self.model.device)), self.model.head)

    def prefetch(self, batch: Batch) -> None:
        """Do nothing: the forward of the next batch would compete with the student for the device."""

    def describe(self) -> dict[str, Any]:
        """Return the model's class, device, dtype of computation and layout."""
        dtype = self.model.autocast or next(p.dtype for p in self.model.module.parameters() if p.is_floating_point())
        return {
            "kind": self.kind,
            "class": type(self.model.module).__name__,
            "device": str(self.model.device),
            "dtype": str(dtype).removeprefix("torch."),
            "layout": self.model.layout,
        }
