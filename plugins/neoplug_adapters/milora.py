"""MiLoRA: A and B start as each weight's r smallest singular components, which are removed from the base.

    W = U S V;  A = sqrt(S[-r:] / scale) V[-r:],  B = U[:, -r:] sqrt(S[-r:] / scale)

Source: Wang et al. 2024, arXiv 2406.09044.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from neoplug import AdapterTraits
from neoplug_adapters.computed_start import ComputedStart


@dataclass(eq=False)
class MiLoRA(ComputedStart):
    """LoRA that starts as each weight's r smallest singular components, removed from the base (MiLoRA)."""

    name: ClassVar[str] = "milora"
    traits: ClassVar[AdapterTraits] = replace(
        ComputedStart.traits,
        seedless="the weights decide",
    )

    init_lora_weights: Literal["milora"] = "milora"  # fixed by the plugin

    def _initial_matrices(
        self, weight: torch.Tensor, r: int, scale: float, statistics: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        root = (values[-r:] / scale).sqrt()
        return left[:, -r:] * root, root[:, None] * right[-r:]
