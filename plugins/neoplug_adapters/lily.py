"""Lily: neighbouring layers share A, and a router mixes shared matrices B for each micro-batch.

    W + scaling B_x A_l,  A_l shared by stride_A layers, B_x a mix of num_B matrices by a router that reads A_l x

The shares of the mix are means over all tokens of the micro-batch, also over padding.

Source: Zhong et al. 2024, arXiv 2407.09946.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from neoplug import AdapterTraits, UsageError, hookimpl
from neoplug_adapters.tuner import Tuner

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(eq=False)
class Lily(Tuner):
    """LoRA whose A is shared by neighbouring layers, and B mixed for each micro-batch by a router (peft's Lily)."""

    name: ClassVar[str] = "lily"
    config: ClassVar[str] = "LilyConfig"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="r",
        cannot_merge="the change depends on the input, so no weight can represent it",
        mixes_documents="its router's shares are means over all tokens of the micro-batch",
    )
    positive: ClassVar[tuple[str, ...]] = ("r", "stride_A", "num_B", "scaling")

    r: int = 32  # the rank, above 0
    stride_A: int = 1  # neighbouring layers that share an A
    num_B: int = 2  # matrices B that are mixed, 2 or more
    scaling: float = 1.0  # factor of the change

    @hookimpl
    def merge_adapter(self, model: PreTrainedModel) -> PreTrainedModel:
        """Raise UsageError: it cannot be merged."""
        why = self.traits.cannot_merge
        raise UsageError(f"a `{self.name}` adapter cannot be merged\nwhy: {why}\nfix: use it with peft")
