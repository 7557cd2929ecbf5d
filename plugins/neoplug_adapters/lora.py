"""LoRA: a trained low-rank product is added to each target; the base is frozen.

    W + scale B A,  scale = lora_alpha / r

Options are peft's. Source: Hu et al. 2021, arXiv 2106.09685; rank-stabilised: arXiv 2312.03732.
"""

from dataclasses import dataclass
from typing import ClassVar

from neoplug_adapters.low_rank import LowRank


@dataclass(eq=False)
class LoRA(LowRank):
    """Adds a trained low-rank product to each target (peft's LoRA); its variants are separate plugins."""

    name: ClassVar[str] = "lora"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.use_dora:
            raise ValueError("use_dora is true, which makes it another adapter: name the plugin `dora` instead")
