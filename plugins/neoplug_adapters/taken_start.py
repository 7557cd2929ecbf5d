"""An initialisation of A and B that peft does not have, taken from the base's weights and, where needed, from data."""

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
    """A variant returns the initial A and B in `_taken`, and the statistics of data that these need in `_read`."""

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
