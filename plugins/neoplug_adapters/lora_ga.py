"""LoRA-GA: A and B start along the gradient of full fine-tuning, and what they start with is taken out of the base.

    G = U S V the gradient by W;  A = c V[:r],  B = c U[:, r:2r],  c = out^(1/4) / sqrt(stable_gamma)

Convention: G is of the cross-entropy of the recipe's answer tokens, whatever its losses; the paper's stable scale.
Source: Wang, Yu, Li 2024, arXiv 2407.05000.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from neoplug import AdapterTraits
from neoplug_adapters.inputs import gradients
from neoplug_adapters.taken_start import TakenStart

if TYPE_CHECKING:
    from neoplug import Batch


@dataclass(eq=False)
class LoRAGA(TakenStart):
    """LoRA-GA from the recipe's training data, with peft's LoRA beneath."""

    name: ClassVar[str] = "lora_ga"
    traits: ClassVar[AdapterTraits] = replace(
        TakenStart.traits,
        seedless="the weights and the data decide",
        reads_data=True,
        own_options=("direction", "stable_gamma", "batches"),
    )

    init_lora_weights: Literal["lora_ga"] = "lora_ga"  # fixed by the plugin
    direction: Literal["ArB2r", "A2rBr"] = "ArB2r"  # which of the 2 r components A and B get: A the first, or B
    stable_gamma: float = 16.0  # above 0: larger takes less out of the base
    batches: int = 16  # micro-batches of training data that the gradient is taken from, above 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batches", "stable_gamma"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be above 0")

    def _read(self, adapted: Any, batches: Iterable[Batch] | None) -> dict[str, torch.Tensor]:
        return gradients(adapted, batches, self.batches, self.name)

    def _taken(
        self, weight: torch.Tensor, r: int, scale: float, read: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert read is not None
        left, _, right = torch.linalg.svd(read, full_matrices=False)
        most = min(2 * r, len(right))  # a narrow layer has no 2 r: the two then share some
        first, last = slice(0, r), slice(most - r, most)
        down, up = (first, last) if self.direction == "ArB2r" else (last, first)
        factor = len(weight) ** 0.25 / self.stable_gamma**0.5
        return factor * left[:, up], factor * right[down]
