"""Base of LoRA variants whose initial A and B peft cannot compute: from the base's weights and, if needed, data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from neoplug_adapters.low_rank import lora_layers
from neoplug_adapters.residual_base import ResidualBase

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from neoplug import Batch


@dataclass(eq=False)
class ComputedStart(ResidualBase):
    """LoRA with an initialisation that a subclass computes in `_initial_matrices`, from data with `_statistics` too."""

    def _check_start(self) -> None:
        """Accept `init_lora_weights`: its type has a single value."""

    def _statistics(self, adapted: Any, batches: Iterable[Batch] | None) -> dict[str, torch.Tensor]:
        """Return the statistics of the data for `_initial_matrices`, by target; the student's output is its base's."""
        return {}

    def _initial_matrices(
        self, weight: torch.Tensor, r: int, scale: float, statistics: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return B [out, r] and A [r, in] of a float32 weight [out, in], from which scale B A will be subtracted."""
        raise NotImplementedError

    def _options(self, model: PreTrainedModel) -> dict[str, Any]:
        return self._for_peft(super()._options(model))

    def _start(self, adapted: Any, batches: Iterable[Batch] | None) -> None:
        if adapted.device.type == "meta":
            return
        statistics = self._statistics(adapted, batches)
        with torch.no_grad():
            for name, layer in lora_layers(adapted):
                self._subtract(layer, statistics.get(name))

    def _subtract(self, layer: Any, statistics: torch.Tensor | None) -> None:
        weight, down, up = layer.get_base_layer().weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight
        matrix, scale = weight.T if layer.fan_in_fan_out else weight, layer.scaling["default"]
        b, a = self._initial_matrices(matrix.float(), layer.r["default"], scale, statistics)
        up.copy_(b)
        down.copy_(a)
        matrix.copy_(matrix.float() - scale * up.float() @ down.float())
