"""GraLoRA: each weight is cut into k x k blocks with a separate LoRA each, so the total rank is k times as high.

    W + alpha / r [B_ij A_ij] in blocks ij

Source: Jung et al. 2025, arXiv 2505.20355.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from neoplug_adapters.inplace_outputs import InplaceOutputs


@dataclass(eq=False)
class GraLoRA(InplaceOutputs):
    """A separate LoRA for each of k x k blocks of a weight (peft's GraLoRA)."""

    name: ClassVar[str] = "gralora"
    config: ClassVar[str] = "GraloraConfig"
    positive: ClassVar[tuple[str, ...]] = ("r", "alpha", "gralora_k")
    shares: ClassVar[tuple[str, ...]] = ("gralora_dropout",)

    r: int = 32  # rank of all blocks together, a multiple of gralora_k
    alpha: int = 64  # scale is alpha / r
    gralora_k: int | None = None  # blocks along each side; must divide all sizes of the targets; left out: 2 or 1
    hybrid_r: int = 0  # the rank of an additional plain LoRA
    gralora_dropout: float = 0.0  # in [0, 1), on what A reads

    def _fitted(self, targets: list[tuple[int, int]], total_steps: int) -> dict[str, Any]:
        return {"gralora_k": self._dividing("gralora_k", (size for target in targets for size in target), 2)}
