"""DeLoRA: a sum of normalised rank-one changes, whose strength is trained separately from their directions.

    W + lambda ||W|| / r  B D A,  D divides by the lengths of B's columns and A's rows

Source: Bini, Girrbach, Akata 2025, arXiv 2503.18225.
"""

from dataclasses import dataclass
from typing import ClassVar

from neoplug import AdapterTraits
from neoplug_adapters.tuner import Tuner


@dataclass(eq=False)
class DeLoRA(Tuner):
    """LoRA with normalised directions and a strength that is trained separately (peft's DeLoRA)."""

    name: ClassVar[str] = "delora"
    config: ClassVar[str] = "DeloraConfig"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="r",
        not_on_quantised="peft does not implement it on quantised layers",
    )
    positive: ClassVar[tuple[str, ...]] = ("r", "delora_lambda")
    shares: ClassVar[tuple[str, ...]] = ("module_dropout",)

    r: int = 8  # the rank, above 0
    delora_lambda: int = 15  # the initial strength
    module_dropout: float = 0.0  # in [0, 1), on the whole change
