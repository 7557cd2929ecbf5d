"""MiSS: one small trained matrix per target, whose rows are repeated along the weight.

    W + D,  D x = E^T s,  s the sums of the inputs x in r groups;  E [r, out] starts at 0

Source: Kang, Yin 2024, arXiv 2409.15371.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from neoplug import AdapterTraits
from neoplug_adapters.tuner import Tuner


@dataclass(eq=False)
class MiSS(Tuner):
    """One small trained matrix per target, repeated along the weight (peft's MiSS)."""

    name: ClassVar[str] = "miss"
    config: ClassVar[str] = "MissConfig"
    positive: ClassVar[tuple[str, ...]] = ("r", "mini_r")
    shares: ClassVar[tuple[str, ...]] = ("miss_dropout",)
    traits: ClassVar[AdapterTraits] = AdapterTraits(sized_by="r", seedless="the matrix starts at 0")

    r: int | None = None  # groups of inputs; left out: 64, or if less the smallest target's inputs
    mini_r: int = 1  # with init_weights mini: outputs that share a row, a divisor of all targets' outputs
    miss_dropout: float = 0.0  # in [0, 1), on what the matrix reads
    init_weights: bool | Literal["mini"] = True  # true, or mini: outputs share rows, as mini_r says

    def _fitted(self, targets: list[tuple[int, int]], total_steps: int) -> dict[str, Any]:
        return {"r": self._up_to("r", min(inputs for inputs, _ in targets), 64)}
