"""AdamW with both running moments in block-wise 8 bits (Dettmers et al. 2022, arXiv 2110.02861).

The implementation is bitsandbytes', on CPU and CUDA. Convention: as `adamw`; options have bitsandbytes' names.
"""

from dataclasses import dataclass
from typing import Any

import torch

from neoplug import hookimpl
from neoplug_optimizers.adamw import AdamW


@dataclass(eq=False)
class AdamW8bit(AdamW):
    """bitsandbytes' AdamW8bit: 2 bytes of state per weight in place of 8."""

    min_8bit_size: int = 4096  # tensors with fewer weights keep float32 moments, as vectors should

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_8bit_size < 0:
            raise ValueError(f"min_8bit_size is {self.min_8bit_size}, but must not be negative")

    @hookimpl
    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimizer over `groups`."""
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, **vars(self))
