"""GLoRA: each weight is scaled and shifted by low-rank matrices, each bias by numbers and a term from the weight.

    W (1 + A) + B, element by element;  b (1 + D) + E + W C where there is a bias;  all start at 0

Source: Chavan et al. 2023, arXiv 2306.07967.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from neoplug import AdapterTraits
from neoplug_adapters.tuner import Tuner


@dataclass(eq=False)
class GLoRA(Tuner):
    """Scales and shifts each weight by low-rank matrices, and each bias (peft's GLoRA)."""

    name: ClassVar[str] = "glora"
    config: ClassVar[str] = "GloraConfig"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="r",
        not_on_quantised="it multiplies the weights themselves, which are packed integers",
    )
    positive: ClassVar[tuple[str, ...]] = ("r",)

    r: int = 8  # rank of the low-rank matrices
    config_A_B: Literal["lora", "vector", "constant", "none"] = "lora"  # A and B: low-rank, a number per row, one, or 0
    config_C: Literal["lora", "vector", "none"] = "lora"  # C, where there is a bias
    config_D_E: Literal["vector", "constant", "none"] = "constant"  # D and E, where there is a bias
