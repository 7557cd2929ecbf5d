"""OLoRA: A and B start as the first r parts of each weight's QR decomposition, which the base gives up.

    W = Q R;  A = R[:r],  B = Q[:, :r],  whose columns are orthonormal

Source: Büyükakyüz 2024, arXiv 2406.01775.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from neoplug import AdapterTraits
from neoplug_adapters.moved_base import MovedBase


@dataclass(eq=False)
class OLoRA(MovedBase):
    """Peft's OLoRA."""

    name: ClassVar[str] = "olora"
    traits: ClassVar[AdapterTraits] = replace(MovedBase.traits, seedless="the decomposition of a weight is its own")

    init_lora_weights: Literal["olora"] = "olora"  # fixed by the plugin

    def _check_start(self) -> None:
        """Accept it: there is one."""
