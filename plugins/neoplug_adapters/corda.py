"""CorDA: A and B start as singular components of W C, C the covariance of the layer's inputs; the base loses these.

    W C = U S V;  B = U sqrt(S),  A = sqrt(S) V C^-1, of the first r components (ipm) or the last (kpm)

ipm trains the components that the data use most; kpm those that they use least, to preserve what the data need: then
the data should be of the task to preserve.
Convention: C is the mean over all tokens, with a hundredth of its mean diagonal added, as in the authors' code.
Source: Yang et al. 2024, arXiv 2406.05223.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from neoplug import AdapterTraits
from neoplug_adapters.computed_start import ComputedStart
from neoplug_adapters.data_statistics import covariances

if TYPE_CHECKING:
    from neoplug import Batch

DAMPING = 0.01  # of C's mean diagonal


@dataclass(eq=False)
class CorDA(ComputedStart):
    """LoRA that starts as components of each weight, chosen by how much the training data use them (CorDA)."""

    name: ClassVar[str] = "corda"
    traits: ClassVar[AdapterTraits] = replace(
        ComputedStart.traits,
        seedless="the weights and the data decide",
        reads_data=True,
        own_options=("corda_method", "batches"),
    )

    init_lora_weights: Literal["corda"] = "corda"  # fixed by the plugin
    corda_method: Literal["ipm", "kpm"] = "ipm"  # ipm: the components that the data use most; kpm: least
    batches: int = 64  # micro-batches of training data for the covariance, above 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batches <= 0:
            raise ValueError(f"batches is {self.batches}, but must be above 0")

    def _statistics(self, adapted: Any, batches: Iterable[Batch] | None) -> dict[str, torch.Tensor]:
        return covariances(adapted, batches, self.batches, self.name)

    def _initial_matrices(
        self, weight: torch.Tensor, r: int, scale: float, statistics: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert statistics is not None
        covariance = statistics.double()
        covariance += DAMPING * covariance.diagonal().mean() * torch.eye(len(covariance)).to(covariance)
        left, values, right = torch.linalg.svd(weight.double() @ covariance, full_matrices=False)
        chosen = slice(0, r) if self.corda_method == "ipm" else slice(len(values) - r, len(values))
        root = (values[chosen] / scale).sqrt()
        down = torch.linalg.solve(covariance, (root[:, None] * right[chosen]).T).T  # C is symmetric
        return left[:, chosen] * root, down
