"""EVA: A starts as the r directions in which the layer's inputs vary most; B starts at 0.

    W + scale B A,  A the first r eigenvectors of E[x x^T]

Convention: every target gets r; peft's redistribution of ranks among targets is off (rho = 1).
Source: Paischer et al. 2024, arXiv 2410.07170.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from neoplug import AdapterTraits
from neoplug_adapters.data_statistics import covariances
from neoplug_adapters.lora import LoRA
from neoplug_adapters.low_rank import lora_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from neoplug import Batch


@dataclass(eq=False)
class EVA(LoRA):
    """LoRA whose A starts as the main directions of each layer's inputs on the training data (EVA)."""

    name: ClassVar[str] = "eva"
    linear_only: ClassVar[bool] = True
    takes_components: ClassVar[bool] = True
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="r",
        not_on_experts="each expert reads other inputs",
        seedless="the data decide",
        reads_data=True,
        own_options=("batches",),
    )

    init_lora_weights: Literal["eva"] = "eva"  # fixed by the plugin
    batches: int = 16  # micro-batches of training data for the directions, above 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batches <= 0:
            raise ValueError(f"batches is {self.batches}, but must be above 0")

    def _check_start(self) -> None:
        """Accept `init_lora_weights`: its type has a single value."""

    def _options(self, model: PreTrainedModel) -> dict[str, Any]:
        return self._for_peft(super()._options(model))

    def _adapt(self, model: PreTrainedModel, config: Any, batches: Iterable[Batch] | None) -> torch.nn.Module:
        adapted = super()._adapt(model, config, batches)
        self._validate_ranks(adapted)
        if model.device.type == "meta":
            return adapted
        statistics = covariances(adapted, batches, self.batches, self.name)
        with torch.no_grad():
            for name, layer in lora_layers(adapted):
                vectors = torch.linalg.eigh(statistics[name].double()).eigenvectors  # [in, in], the largest last
                layer.lora_A["default"].weight.copy_(vectors[:, -layer.r["default"] :].flip(-1).T)
        return adapted
