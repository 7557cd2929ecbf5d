"""MiCA: B is frozen as the left singular vectors of each weight's r smallest singular values; A starts at 0.

    W + scale U[:, -r:] A

Source: arXiv 2604.01694, as peft describes it.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from neoplug import AdapterTraits
from neoplug_adapters.lora import LoRA


@dataclass(eq=False)
class MiCA(LoRA):
    """LoRA with B frozen as each weight's r smallest left singular vectors; A trains from 0 (peft's MiCA)."""

    name: ClassVar[str] = "mica"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="r",
        not_on_quantised="peft computes no singular vectors of integer weights",
        not_on_experts="peft computes singular vectors only of single matrices",
        seedless="the weights decide",
    )
    linear_only: ClassVar[bool] = True

    init_lora_weights: Literal["mica"] = "mica"  # fixed by the plugin

    def _check_start(self) -> None:
        """Accept `init_lora_weights`: its type has a single value."""
