"""OFT: each weight is turned by an orthogonal matrix of blocks on its inputs; lengths and angles stay.

    W R,  R block-diagonal;  R = (1 + Q) (1 - Q)^-1 with Q skew, which trains from 0

Source: Qiu et al. 2023, arXiv 2306.07280; Cayley-Neumann series: Qiu et al. 2025, arXiv 2506.19847.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from neoplug import AdapterTraits
from neoplug_adapters.tuner import Tuner


@dataclass(eq=False)
class OFT(Tuner):
    """Peft's OFT."""

    name: ClassVar[str] = "oft"
    config: ClassVar[str] = "OFTConfig"
    traits: ClassVar[AdapterTraits] = AdapterTraits(sized_by="oft_block_size", seedless="Q starts at 0")
    positive: ClassVar[tuple[str, ...]] = ("oft_block_size", "eps", "num_cayley_neumann_terms")
    shares: ClassVar[tuple[str, ...]] = ("module_dropout",)
    fixed: ClassVar[dict[str, Any]] = {"r": 0}  # peft takes the size of a block, or their number

    oft_block_size: int | None = None  # divides all targets' inputs; left out: the largest such up to 32
    module_dropout: float = 0.0  # in [0, 1), on blocks
    coft: bool = False  # keep R near the identity, by eps
    eps: float = 6e-5  # how near, with coft
    block_share: bool = False  # one block for all
    use_cayley_neumann: bool = True  # a series in place of the inverse
    num_cayley_neumann_terms: int = 5  # of that series

    def _fitted(self, targets: list[tuple[int, int]], total_steps: int) -> dict[str, Any]:
        return {"oft_block_size": self._dividing("oft_block_size", (inputs for inputs, _ in targets), 32)}
