"""The teacher's signal for a batch: computed live, without gradient, only where an answer token is predicted."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from neoplug.data.batch import Batch
from neoplug.models.head import Head
from neoplug.models.language_model import LanguageModel


@dataclass(eq=False)
class LiveSignal:
    """Hidden states [N, H] of the teacher; its logits are made a block at a time."""

    states: Tensor
    head: Head

    @cached_property
    def _logits_of(self) -> Callable[[Tensor], Tensor]:
        return self.head.prepare_logits_fn()

    @torch.no_grad()
    def logits(self, rows: slice) -> Tensor:
        """Return the teacher's float32 logits [n, V]."""
        return self._logits_of(self.states[rows])


@torch.no_grad()
def teacher_signal(teacher: LanguageModel, batch: Batch) -> LiveSignal:
    """Run the teacher on a batch as the teacher reads it, on the teacher's own device."""
    return LiveSignal(teacher.hidden(batch.for_teacher().to(teacher.device)), teacher.head)
