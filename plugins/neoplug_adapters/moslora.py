"""MoSLoRA: a trained mixer between A and B, which combines each column of B with each row of A.

    W + scale B M A,  M [r, r];  A and M start uniform (Kaiming), B at 0

M A has A's shape, so a run saves plain LoRA; checkpoints hold A, M and B. Controls of a fair comparison: M frozen at
its random initial values, M = 1 (plain LoRA), and LoRA with as many parameters.
Source: Wu, Wang, Zhao, Wong 2024, arXiv 2406.11909.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from neoplug import AdapterTraits, hookimpl
from neoplug_adapters.lora import LoRA
from neoplug_adapters.low_rank import lora_layers, write_adapter

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from neoplug import Batch


class Mixed(nn.Module):
    """The module that replaces peft's A: x -> M A x."""

    def __init__(self, down: nn.Linear, kind: str) -> None:
        super().__init__()
        r, device, dtype = down.out_features, down.weight.device, down.weight.dtype
        self.down, self.mixer = down, nn.Linear(r, r, bias=False, device=device, dtype=dtype)
        if kind == "identity":
            nn.init.eye_(self.mixer.weight)
        else:
            nn.init.kaiming_uniform_(self.mixer.weight, a=sqrt(5))
        self.mixer.requires_grad_(kind == "trained")

    @property
    def weight(self) -> Tensor:
        """M A [r, in]: peft reads it as A when it merges."""
        with torch.no_grad():
            return self.mixer.weight @ self.down.weight

    def forward(self, states: Tensor) -> Tensor:
        """Return M A x."""
        mixed: Tensor = self.mixer(self.down(states))
        return mixed


@dataclass(eq=False)
class MoSLoRA(LoRA):
    """LoRA with a trained r x r mixer between A and B; options are LoRA's."""

    name: ClassVar[str] = "moslora"
    linear_only: ClassVar[bool] = True
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="r",
        not_on_experts="peft reads the weight of A without calling it, so the mixer would not train",
        own_options=("mixer",),
    )

    mixer: Literal["trained", "frozen", "identity"] = "trained"  # frozen and identity (plain LoRA) are controls

    def _options(self, model: PreTrainedModel) -> dict[str, Any]:
        return self._for_peft(super()._options(model)) | {"init_lora_weights": self.init_lora_weights}

    def _adapt(self, model: PreTrainedModel, config: Any, batches: Iterable[Batch] | None) -> torch.nn.Module:
        adapted = super()._adapt(model, config, batches)
        for _, layer in lora_layers(adapted):
            layer.lora_A["default"] = Mixed(layer.lora_A["default"], self.mixer)
        return adapted

    @hookimpl
    def save_adapter(self, model: PeftModel, path: Path) -> None:
        """Write plain LoRA in peft's files, with M A in place of A."""
        from peft import get_peft_model_state_dict

        weights = get_peft_model_state_dict(model, save_embedding_layers=False)
        plain = {name: weight for name, weight in weights.items() if ".lora_A.default." not in name}
        layers = {name: layer.lora_A["default"].weight for name, layer in lora_layers(model)}
        plain |= {f"base_model.model.{name}.lora_A.weight": weight for name, weight in layers.items()}
        write_adapter(model.peft_config["default"], plain, path)
