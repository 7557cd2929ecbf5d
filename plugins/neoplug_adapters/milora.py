"""MiLoRA: A and B start as each weight's r smallest singular components, which the base gives up.

    W = U S V;  A = sqrt(S[-r:] / scale) V[-r:],  B = U[:, -r:] sqrt(S[-r:] / scale)

Source: Wang et al. 2024, arXiv 2406.09044.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from neoplug import AdapterTraits
from neoplug_adapters.taken_start import TakenStart


@dataclass(eq=False)
class MiLoRA(TakenStart):
    """MiLoRA, with peft's LoRA beneath."""

    name: ClassVar[str] = "milora"
    traits: ClassVar[AdapterTraits] = replace(
        TakenStart.traits,
        seedless="the singular components of a weight are its own",
    )

    init_lora_weights: Literal["milora"] = "milora"  # fixed by the plugin

    def _taken(
        self, weight: torch.Tensor, r: int, scale: float, read: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        root = (values[-r:] / scale).sqrt()
        return left[:, -r:] * root, root[:, None] * right[-r:]
