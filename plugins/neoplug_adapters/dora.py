"""DoRA: LoRA changes the direction of each weight's rows, a trained magnitude their length.

    m (W + scale B A) / ||W + scale B A||  with one m and one norm for each output row;  m starts as ||W||

Options are LoRA's. No gradient runs through the norm, as in section 4.3 of the paper.
Source: Liu et al. 2024, arXiv 2402.09353.
"""

from dataclasses import dataclass
from typing import ClassVar

from neoplug import AdapterTraits
from neoplug_adapters.low_rank import LowRank


@dataclass(eq=False)
class DoRA(LowRank):
    """LoRA for the direction of each weight's rows, with trained lengths (peft's DoRA); options are LoRA's."""

    name: ClassVar[str] = "dora"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="r",
        not_on_experts="peft has magnitudes only for single matrices",
    )

    use_dora: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.use_dora:
            raise ValueError("use_dora is false, which makes it another adapter: name the plugin `lora` instead")
