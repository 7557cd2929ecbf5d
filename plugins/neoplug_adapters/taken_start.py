"""A start of A and B that peft does not know, taken out of the base by a function of each weight."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from neoplug_adapters.low_rank import lora_layers
from neoplug_adapters.moved_base import MovedBase

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from neoplug.data.batch import Batch


@dataclass(eq=False)
class TakenStart(MovedBase):
    """A variant says by `_taken` what A and B start with."""

    def _check_start(self) -> None:
        """Accept it: there is one."""

    def _taken(self, name: str, weight: torch.Tensor, r: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return B [out, r] and A [r, in] whose product the base gives up, of a float32 weight [out, in]."""
        raise NotImplementedError

    def _options(self, model: PreTrainedModel) -> dict[str, Any]:
        return super()._options(model) | {"init_lora_weights": True}

    def _start(self, adapted: Any, batches: Iterable[Batch] | None) -> None:
        with torch.no_grad():
            for name, layer in lora_layers(adapted):
                self._take(name, layer)

    def _take(self, name: str, layer: Any) -> None:
        transposed, weight = layer.fan_in_fan_out, layer.get_base_layer().weight
        matrix = weight.T if transposed else weight
        b, a = self._taken(name, matrix.float(), layer.r["default"])
        scale = layer.scaling["default"]
        layer.lora_A["default"].weight.copy_(a / scale**0.5)
        layer.lora_B["default"].weight.copy_(b / scale**0.5)
        product = scale * layer.lora_B["default"].weight.float() @ layer.lora_A["default"].weight.float()
        matrix.copy_(matrix.float() - product)
