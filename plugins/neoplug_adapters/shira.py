"""SHiRA: a few entries of each weight train, at random positions: a sparse change of high rank.

    W + S,  S sparse with r (in + out) entries, as many as LoRA of rank r has

Source: Bhardwaj et al. 2024, arXiv 2406.13175.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from neoplug_adapters.tuner import Tuner

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from neoplug import Batch


@dataclass(eq=False)
class SHiRA(Tuner):
    """Trains a few entries of each weight at random positions (peft's SHiRA)."""

    name: ClassVar[str] = "shira"
    config: ClassVar[str] = "ShiraConfig"
    positive: ClassVar[tuple[str, ...]] = ("r",)
    drawn: ClassVar[tuple[str, ...]] = ("random_seed",)

    r: int | None = None  # as many entries as LoRA of this rank; left out: 32, or if less the smallest target's
    random_seed: int | None = None  # the seed of the positions; left out: drawn from the run's seed

    def _fitted(self, targets: list[tuple[int, int]], total_steps: int) -> dict[str, Any]:
        most = min(inputs * outputs // (inputs + outputs) for inputs, outputs in targets)
        return {"r": self._up_to("r", most, 32)}

    def _adapt(self, model: PreTrainedModel, config: Any, batches: Iterable[Batch] | None) -> torch.nn.Module:
        torch.sparse.check_sparse_tensor_invariants.disable()  # torch's default; without it torch warns at each step
        if model.device.type == "meta":  # meta tensors have no positions
            config.mask_fn = None
        return super()._adapt(model, config, batches)
