"""LoRA-FA: A stays at its random initial values and only B trains, so A's inputs need not be kept for backward.

    W + scale B A,  A frozen: half of LoRA's parameters

Convention: the paper's method; LoRA-FA in peft.optimizers is an optimizer that also rescales B's gradient.
Source: Zhang et al. 2023, arXiv 2308.03303.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from neoplug_adapters.lora import LoRA

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from neoplug import Batch


@dataclass(eq=False)
class LoRAFA(LoRA):
    """LoRA with A frozen at its random initial values: half the parameters and less memory."""

    name: ClassVar[str] = "lora_fa"

    def _adapt(self, model: PreTrainedModel, config: Any, batches: Iterable[Batch] | None) -> torch.nn.Module:
        adapted = super()._adapt(model, config, batches)
        for name, parameter in adapted.named_parameters():
            if ".lora_A." in name or ".lora_embedding_A." in name:
                parameter.requires_grad_(False)
        return adapted
