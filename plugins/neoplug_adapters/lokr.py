"""LoKr: the change is the Kronecker product of a small matrix and a low-rank one.

    W + alpha / r  C x (B A),  x the Kronecker product

Source: Yeh et al. 2023 (LyCORIS), arXiv 2309.14859.
"""

from dataclasses import dataclass
from typing import ClassVar

from neoplug import AdapterTraits
from neoplug_adapters.tuner import Tuner


@dataclass(eq=False)
class LoKr(Tuner):
    """A change that is the Kronecker product of a small matrix and a low-rank one (peft's LoKr)."""

    name: ClassVar[str] = "lokr"
    config: ClassVar[str] = "LoKrConfig"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="r",
        not_on_quantised="peft does not implement it on quantised layers",
    )
    positive: ClassVar[tuple[str, ...]] = ("r", "alpha")
    shares: ClassVar[tuple[str, ...]] = ("rank_dropout", "module_dropout")

    r: int = 8  # the rank of the larger factor, above 0; a factor smaller than 2 r is not decomposed
    alpha: int = 8  # scale is alpha / r
    rank_dropout: float = 0.0  # in [0, 1), on rows of the change
    module_dropout: float = 0.0  # in [0, 1), on the whole change
    rank_dropout_scale: bool = False  # scale the other rows up to make up for dropped ones
    decompose_both: bool = False  # make the smaller factor of low rank too
    decompose_factor: int = -1  # the size of the smaller factor; -1: as near to a square as the sizes allow
