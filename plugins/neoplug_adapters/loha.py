"""LoHa: the change is the product, element by element, of two low-rank products, of rank up to r^2.

    W + alpha / r (B1 A1) * (B2 A2)

Source: Hyeon-Woo, Ye-Bin, Oh 2021 (FedPara), arXiv 2108.06098; Yeh et al. 2023 (LyCORIS), arXiv 2309.14859.
"""

from dataclasses import dataclass
from typing import ClassVar

from neoplug import AdapterTraits
from neoplug_adapters.tuner import Tuner


@dataclass(eq=False)
class LoHa(Tuner):
    """A change of rank up to r^2: two low-rank products, multiplied element by element (peft's LoHa)."""

    name: ClassVar[str] = "loha"
    config: ClassVar[str] = "LoHaConfig"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="r",
        not_on_quantised="peft does not implement it on quantised layers",
    )
    positive: ClassVar[tuple[str, ...]] = ("r", "alpha")
    shares: ClassVar[tuple[str, ...]] = ("rank_dropout", "module_dropout")

    r: int = 8  # the rank of each product, above 0
    alpha: int = 8  # scale is alpha / r
    rank_dropout: float = 0.0  # in [0, 1), on rows of the change
    module_dropout: float = 0.0  # in [0, 1), on the whole change
