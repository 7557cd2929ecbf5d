"""C3A: the change consists of circulant blocks, each given by one trained vector: a circular convolution of high rank.

    W + blocks of circulant matrices of size block_size

Source: Chen et al. 2024, arXiv 2407.19342.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from neoplug import AdapterTraits
from neoplug_adapters.inplace_outputs import InplaceOutputs


@dataclass(eq=False)
class C3A(InplaceOutputs):
    """A change of high rank in circulant blocks, each given by one trained vector (peft's C3A)."""

    name: ClassVar[str] = "c3a"
    config: ClassVar[str] = "C3AConfig"
    traits: ClassVar[AdapterTraits] = AdapterTraits(sized_by="block_size", seedless="all vectors start at 0")
    positive: ClassVar[tuple[str, ...]] = ("block_size",)
    fixed: ClassVar[dict[str, Any]] = {"init_weights": True}  # vectors start at 0

    block_size: int | None = None  # must divide all sizes of the targets; left out: the largest divisor up to 256

    def _fitted(self, targets: list[tuple[int, int]], total_steps: int) -> dict[str, Any]:
        return {"block_size": self._dividing("block_size", (size for target in targets for size in target), 256)}
