"""`adamw_8bit` with states in unified memory: CUDA moves them to the host while GPU memory is full (arXiv 2305.14314).

The implementation is bitsandbytes'. On a CPU it is the same as `adamw_8bit`.
"""

from dataclasses import dataclass
from typing import Any

import torch

from neoplug import hookimpl
from neoplug_optimizers.adamw_8bit import AdamW8bit


@dataclass(eq=False)
class PagedAdamW8bit(AdamW8bit):
    """bitsandbytes' PagedAdamW8bit: `adamw_8bit` whose state moves to the host while GPU memory is full."""

    @hookimpl
    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimizer over `groups`, paged if all are on a GPU."""
        from bitsandbytes.optim import PagedAdamW8bit

        if any(parameter.device.type == "cpu" for group in groups for parameter in group["params"]):
            return super().make_optimizer(groups)
        return PagedAdamW8bit(groups, **vars(self))
