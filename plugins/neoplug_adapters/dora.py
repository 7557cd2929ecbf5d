"""DoRA: LoRA moves the direction of each target's rows, a trained magnitude their lengths.

    m (W + scale B A) / ||W + scale B A||  with one m and one norm for each output row;  m starts as ||W||

Options are LoRA's. The norm takes no gradient, as the paper's section 4.3 has it.
Source: Liu et al. 2024, arXiv 2402.09353.
"""

from dataclasses import dataclass
from typing import ClassVar

from neoplug import AdapterTraits
from neoplug_adapters.low_rank import LowRank


@dataclass(eq=False)
class DoRA(LowRank):
    """Peft's DoRA."""

    name: ClassVar[str] = "dora"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="r",
        not_on_experts="peft keeps magnitudes of single matrices alone",
    )

    use_dora: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.use_dora:
            raise ValueError("use_dora is false, which makes it another adapter: name the plugin `lora` instead")
