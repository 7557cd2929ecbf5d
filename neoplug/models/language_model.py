"""A model as the objective uses it: hidden states at the positions that predict answer tokens, and an output head.

N answer tokens of a batch, H hidden size.
"""

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from neoplug.data.batch import FULL_ATTENTION, Batch, Layout, Windows
from neoplug.models.head import Head
from neoplug.models.recorder import recording

logger = logging.getLogger("neoplug")


@dataclass(eq=False)
class LanguageModel:
    """A model as the objective uses it: hidden states of a batch's answer positions, and a head.

    module        the model itself, its head in place
    layout        how it reads a batch; the first of LAYOUTS that keeps documents apart
    windows       how far each kind of its attention layers looks back: a block mask says so itself
    autocast      what it computes in; None is its own dtype, without autocast
    pad_token_id  fills padded rows
    """

    module: nn.Module
    head: Head
    device: torch.device
    layout: Layout = "padded"
    windows: Windows = field(default_factory=lambda: FULL_ATTENTION)
    autocast: torch.dtype | None = None
    pad_token_id: int = 0

    def hidden(self, batch: Batch) -> Tensor:
        """Return the hidden states [N, H] that predict the batch's answer tokens."""
        dtype = self.autocast or next(p.dtype for p in self.module.parameters() if p.is_floating_point())
        return self._record(*batch.layout(self.layout, self.pad_token_id, self.windows, dtype))

    def computing(self) -> torch.autocast:
        """Return the context in which the model computes."""
        return torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None)

    def _record(self, inputs: dict[str, Any], positions: Tensor) -> Tensor:
        with self.computing(), recording(self.head.module, positions, inputs["input_ids"].shape[1]) as recorded:
            self.module(**inputs)
        return recorded[0]
