"""Adapters that add their change into what a layer put out, on layers whose output may not be written into.

A 4-bit layer of bitsandbytes that has a bias puts out a view, of which autograd forbids that; peft's LoRA copies it.
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
class WrittenOutputs(Tuner):
    """An adapter of peft's that writes into what its targets put out: biased 4-bit targets hand out a copy."""

    def _adapt(self, model: PreTrainedModel, config: PeftConfig, batches: Iterable[Batch] | None) -> torch.nn.Module:
        adapted = super()._adapt(model, config, batches)
        for name, layer in adapted.named_modules():
            biased = getattr(layer, "bias", None) is not None
            if name.endswith(".base_layer") and biased and type(layer).__name__ == "Linear4bit":
                layer.register_forward_hook(_copied)
        return adapted


def _copied(layer: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.clone()
