"""Store the teacher's last hidden states; its own head turns them into logits, so every loss reads them.

    float32    4 H bytes per answer token; exact
    bfloat16   2 H bytes; exact where the teacher computes in bfloat16
    int8       H (1 + 4 / 64) bytes: each group of 64 values has a scale, the largest of them / 127

H hidden size of the teacher.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from neoplug import StatesSignal, hookimpl

GROUP = 64  # values that share a scale
STEPS = 127


@dataclass(eq=False)
class States:
    """Store hidden states of the answer tokens."""

    dtype: Literal["float32", "bfloat16", "int8"] = "bfloat16"

    serves: ClassVar[str] = "full"

    @hookimpl
    def encode_teacher(self, states: Tensor) -> dict[str, Tensor]:
        """Return the states [N, H]; of int8 `values` [N, H] and `scales` [N, H / 64]."""
        if self.dtype != "int8":
            return {"states": states.to(getattr(torch, self.dtype))}
        size = states.shape[1]
        groups = functional.pad(states, (0, -size % GROUP)).unflatten(-1, (-1, GROUP))
        scales = groups.abs().amax(-1) / STEPS
        values = (groups / scales.clamp(min=torch.finfo(torch.float32).tiny)[..., None]).round()
        return {"values": values.flatten(1)[:, :size].to(torch.int8), "scales": scales}

    @hookimpl
    def decode_teacher(self, stored: list[dict[str, Tensor]], head: Any) -> StatesSignal:
        """Return a signal with the logits of the states."""
        return StatesSignal(torch.cat([self._states(document) for document in stored]), head)

    def _states(self, document: dict[str, Tensor]) -> Tensor:
        if self.dtype != "int8":
            return document["states"]
        values = document["values"]
        return values * document["scales"].repeat_interleave(GROUP, -1)[:, : values.shape[1]]
