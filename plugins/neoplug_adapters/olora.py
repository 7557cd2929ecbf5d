"""OLoRA: A and B start as the first r parts of each weight's QR decomposition, which are removed from the base.

    W = Q R;  A = R[:r],  B = Q[:, :r],  whose columns are orthonormal

Source: Büyükakyüz 2024, arXiv 2406.01775.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from neoplug import AdapterTraits
from neoplug_adapters.residual_base import ResidualBase


@dataclass(eq=False)
class OLoRA(ResidualBase):
    """LoRA that starts as the first r parts of each weight's QR decomposition, removed from the base (OLoRA)."""

    name: ClassVar[str] = "olora"
    traits: ClassVar[AdapterTraits] = replace(ResidualBase.traits, seedless="the weights decide")

    init_lora_weights: Literal["olora"] = "olora"  # fixed by the plugin

    def _check_start(self) -> None:
        """Accept `init_lora_weights`: its type has a single value."""
