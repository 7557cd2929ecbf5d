"""A start of A and B that peft does not know, taken out of the base: of each weight, and of data if need be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from neoplug_adapters.low_rank import lora_layers
from neoplug_adapters.moved_base import MovedBase

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from neoplug import Batch


@dataclass(eq=False)
class TakenStart(MovedBase):
    """A variant says by `_taken` what A and B start with, and by `_read` what of the data that depends on."""

    def _check_start(self) -> None:
        """Accept it: there is one."""

    def _read(self, adapted: Any, batches: Iterable[Batch] | None) -> dict[str, torch.Tensor]:
        """Return what `_taken` needs of the data, by target; the student computes what its base does."""
        return {}

    def _taken(
        self, weight: torch.Tensor, r: int, scale: float, read: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return B [out, r] and A [r, in]: the base gives up scale B A of its float32 weight [out, in]."""
        raise NotImplementedError

    def _options(self, model: PreTrainedModel) -> dict[str, Any]:
        return self._for_peft(super()._options(model))

    def _start(self, adapted: Any, batches: Iterable[Batch] | None) -> None:
        if adapted.device.type == "meta":
            return
        read = self._read(adapted, batches)
        with torch.no_grad():
            for name, layer in lora_layers(adapted):
                self._take(layer, read.get(name))

    def _take(self, layer: Any, read: torch.Tensor | None) -> None:
        weight, down, up = layer.get_base_layer().weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight
        matrix, scale = weight.T if layer.fan_in_fan_out else weight, layer.scaling["default"]
        b, a = self._taken(matrix.float(), layer.r["default"], scale, read)
        up.copy_(b)
        down.copy_(a)
        matrix.copy_(matrix.float() - scale * up.float() @ down.float())
