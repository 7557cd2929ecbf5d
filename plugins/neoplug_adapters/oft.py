"""OFT: each weight's inputs are rotated in blocks by an orthogonal matrix, which preserves lengths and angles.

    W R,  R block-diagonal;  R = (1 + Q) (1 - Q)^-1 Q skew, starts at 0

Source: Qiu et al. 2023, arXiv 2306.07280; Cayley-Neumann series: Qiu et al. 2025, arXiv 2506.19847.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from neoplug import AdapterTraits
from neoplug_adapters.tuner import Tuner


@dataclass(eq=False)
class OFT(Tuner):
    """Orthogonal rotation of each weight's inputs in blocks (peft's OFT)."""

    name: ClassVar[str] = "oft"
    config: ClassVar[str] = "OFTConfig"
    traits: ClassVar[AdapterTraits] = AdapterTraits(sized_by="oft_block_size", seedless="Q starts at 0")
    positive: ClassVar[tuple[str, ...]] = ("oft_block_size", "eps", "num_cayley_neumann_terms")
    shares: ClassVar[tuple[str, ...]] = ("module_dropout",)
    fixed: ClassVar[dict[str, Any]] = {"r": 0}  # the number of blocks, which follows from their size

    oft_block_size: int | None = None  # must divide the inputs of all targets; left out: the largest divisor up to 32
    module_dropout: float = 0.0  # in [0, 1), on blocks
    coft: bool = False  # constrain R to be near the identity
    eps: float = 6e-5  # the distance allowed by coft
    block_share: bool = False  # the same R for all blocks
    use_cayley_neumann: bool = True  # a truncated series in place of the matrix inverse
    num_cayley_neumann_terms: int = 5  # terms of that series

    def _fitted(self, targets: list[tuple[int, int]], total_steps: int) -> dict[str, Any]:
        return {"oft_block_size": self._dividing("oft_block_size", (inputs for inputs, _ in targets), 32)}
