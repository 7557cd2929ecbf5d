"""RandLoRA: a trained sum of frozen random matrices of low rank, so that the change has full rank.

    W + s sum_j B_j diag(b_j) A diag(a_j),  A and B frozen and shared;  b starts at 0

Source: Albert et al. 2025, arXiv 2502.00987.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from neoplug_adapters.tuner import Tuner


@dataclass(eq=False)
class RandLoRA(Tuner):
    """A change of full rank: a trained sum of frozen random low-rank matrices (peft's RandLoRA)."""

    name: ClassVar[str] = "randlora"
    config: ClassVar[str] = "RandLoraConfig"
    positive: ClassVar[tuple[str, ...]] = ("r", "randlora_alpha")
    shares: ClassVar[tuple[str, ...]] = ("randlora_dropout",)
    drawn: ClassVar[tuple[str, ...]] = ("projection_prng_key",)

    r: int | None = None  # rank of each matrix: lower, more train; left out: 32, or if less the smallest size
    randlora_alpha: int = 640  # scale is randlora_alpha / r
    randlora_dropout: float = 0.0  # in [0, 1), on what A reads
    projection_prng_key: int | None = None  # the seed of the random matrices; left out: drawn from the run's seed
    save_projection: bool = True  # store them; false: they are drawn again from their seed
    sparse: bool = False  # matrices of -1, 0 and 1, a third of them not 0
    very_sparse: bool = False  # even fewer that are not 0

    def _fitted(self, targets: list[tuple[int, int]], total_steps: int) -> dict[str, Any]:
        return {"r": self._up_to("r", min(size for target in targets for size in target), 32)}
