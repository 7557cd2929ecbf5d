"""CorDA: A and B start as components of W C, C the covariance of what the layer reads, which the base gives up.

    W C = U S V;  B = U sqrt(S),  A = sqrt(S) V C^-1, of the first r components (ipm) or the last (kpm)

ipm learns along what the data use most; kpm keeps what the data need: they should then be those of the old task.
Convention: C is damped by a hundredth of its mean diagonal, as the authors' code does it, and is over all tokens.
Source: Yang et al. 2024, arXiv 2406.05223.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from neoplug import AdapterTraits
from neoplug_adapters.inputs import covariances
from neoplug_adapters.taken_start import TakenStart

if TYPE_CHECKING:
    from neoplug import Batch

DAMP = 0.01


@dataclass(eq=False)
class CorDA(TakenStart):
    """CorDA from the recipe's training data, with peft's LoRA beneath."""

    name: ClassVar[str] = "corda"
    traits: ClassVar[AdapterTraits] = replace(
        TakenStart.traits,
        seedless="the weights and the data decide",
        reads_data=True,
        own_options=("corda_method", "batches"),
    )

    init_lora_weights: Literal["corda"] = "corda"  # fixed by the plugin
    corda_method: Literal["ipm", "kpm"] = "ipm"  # components that the data use most, or least
    batches: int = 64  # micro-batches of training data that the covariance is taken from, above 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batches <= 0:
            raise ValueError(f"batches is {self.batches}, but must be above 0")

    def _read(self, adapted: Any, batches: Iterable[Batch] | None) -> dict[str, torch.Tensor]:
        return covariances(adapted, batches, self.batches, self.name)

    def _taken(
        self, weight: torch.Tensor, r: int, scale: float, read: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert read is not None
        covariance = read.double()
        covariance += DAMP * covariance.diagonal().mean() * torch.eye(len(covariance)).to(covariance)
        left, values, right = torch.linalg.svd(weight.double() @ covariance, full_matrices=False)
        kept = slice(0, r) if self.corda_method == "ipm" else slice(len(values) - r, len(values))
        root = (values[kept] / scale).sqrt()
        down = torch.linalg.solve(covariance, (root[:, None] * right[kept]).T).T  # C is symmetric
        return left[:, kept] * root, down
