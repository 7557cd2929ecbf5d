"""Base of adapters of peft that add their change to a layer's output in place.

With bias, a 4-bit layer of bitsandbytes returns a view, which autograd does not allow to change in place. Such outputs
are copied first, as peft's LoRA does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from neoplug_adapters.tuner import Tuner

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

    from neoplug import Batch


@dataclass(eq=False)
class InplaceOutputs(Tuner):
    """An adapter of peft that changes its targets' outputs in place; 4-bit targets with a bias return a copy."""

    def _adapt(self, model: PreTrainedModel, config: PeftConfig, batches: Iterable[Batch] | None) -> torch.nn.Module:
        adapted = super()._adapt(model, config, batches)
        for name, layer in adapted.named_modules():
            biased = getattr(layer, "bias", None) is not None
            if name.endswith(".base_layer") and biased and type(layer).__name__ == "Linear4bit":
                layer.register_forward_hook(_copied)
        return adapted


def _copied(layer: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.clone()
