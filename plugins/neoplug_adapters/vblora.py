"""VB-LoRA: pieces of all A and B are mixed from one shared bank of trained vectors.

    W + B A, each piece of vector_length numbers a weighted sum of the topk vectors that its logits choose

Source: Li, Han, Ji 2024, arXiv 2405.15179.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from neoplug import AdapterTraits
from neoplug_adapters.tuner import Tuner


@dataclass(eq=False)
class VBLoRA(Tuner):
    """LoRA whose matrices are all mixed from one shared bank of trained vectors (peft's VB-LoRA)."""

    name: ClassVar[str] = "vblora"
    config: ClassVar[str] = "VBLoRAConfig"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="r",
        starts_elsewhere="all pieces are mixed from random vectors, so that B A is small, but not 0",
    )
    positive: ClassVar[tuple[str, ...]] = (
        "r",
        "num_vectors",
        "vector_length",
        "topk",
        "init_vector_bank_bound",
        "init_logits_std",
    )
    shares: ClassVar[tuple[str, ...]] = ("vblora_dropout",)

    r: int = 4  # the rank, above 0
    num_vectors: int = 256  # in the bank
    vector_length: int | None = None  # must divide all sizes of the targets; left out: the largest divisor up to 256
    topk: int = 2  # vectors in a mix
    vblora_dropout: float = 0.0  # in [0, 1), on what A reads
    init_vector_bank_bound: float = 0.02  # the bank starts uniform in +- this
    init_logits_std: float = 0.1  # standard deviation of the initial logits

    def _fitted(self, targets: list[tuple[int, int]], total_steps: int) -> dict[str, Any]:
        return {"vector_length": self._dividing("vector_length", (size for target in targets for size in target), 256)}
