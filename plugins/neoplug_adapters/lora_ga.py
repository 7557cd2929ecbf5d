"""LoRA-GA: A and B start along the gradient of full fine-tuning, and their initial product is subtracted from the base.

    G = U S V the gradient with respect to W;  A = c V[:r],  B = c U[:, r:2r],  c = out^(1/4) / sqrt(stable_gamma)

Convention: G is the gradient of the answer tokens' cross-entropy, whatever the recipe's losses; c is the paper's.
Source: Wang, Yu, Li 2024, arXiv 2407.05000.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from neoplug import AdapterTraits
from neoplug_adapters.computed_start import ComputedStart
from neoplug_adapters.data_statistics import gradients

if TYPE_CHECKING:
    from neoplug import Batch


@dataclass(eq=False)
class LoRAGA(ComputedStart):
    """LoRA that starts along the gradient of full fine-tuning on the training data (LoRA-GA)."""

    name: ClassVar[str] = "lora_ga"
    traits: ClassVar[AdapterTraits] = replace(
        ComputedStart.traits,
        seedless="the weights and the data decide",
        reads_data=True,
        own_options=("direction", "stable_gamma", "batches"),
    )

    init_lora_weights: Literal["lora_ga"] = "lora_ga"  # fixed by the plugin
    direction: Literal["ArB2r", "A2rBr"] = "ArB2r"  # ArB2r: A gets components 1 to r, B r + 1 to 2r; A2rBr: vice versa
    stable_gamma: float = 16.0  # above 0; a larger value subtracts less from the base
    batches: int = 16  # micro-batches of training data for the gradient, above 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batches", "stable_gamma"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be above 0")

    def _statistics(self, adapted: Any, batches: Iterable[Batch] | None) -> dict[str, torch.Tensor]:
        return gradients(adapted, batches, self.batches, self.name)

    def _initial_matrices(
        self, weight: torch.Tensor, r: int, scale: float, statistics: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert statistics is not None
        left, _, right = torch.linalg.svd(statistics, full_matrices=False)
        most = min(2 * r, len(right))  # with fewer than 2 r components A and B share some
        first, last = slice(0, r), slice(most - r, most)
        down, up = (first, last) if self.direction == "ArB2r" else (last, first)
        factor = len(weight) ** 0.25 / self.stable_gamma**0.5
        return factor * left[:, up], factor * right[down]
