"""HRA: each weight's inputs are reflected r times: an orthogonal change of rank r.

    W (1 - 2 u1 u1^T) ... (1 - 2 ur ur^T);  the vectors start in equal pairs, whose reflections cancel

Source: Yuan, Liu, Xu 2024, arXiv 2405.17484.
"""

from dataclasses import dataclass
from typing import ClassVar

from neoplug import AdapterTraits
from neoplug_adapters.tuner import Tuner


@dataclass(eq=False)
class HRA(Tuner):
    """Orthogonal change of each weight by r trained reflections of its inputs (peft's HRA)."""

    name: ClassVar[str] = "hra"
    config: ClassVar[str] = "HRAConfig"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="r",
        not_on_quantised="peft does not implement it on quantised layers",
    )
    positive: ClassVar[tuple[str, ...]] = ("r",)

    r: int = 8  # reflections, above 0 and even, so that the student starts as its base
    apply_GS: bool = False  # make the vectors orthogonal (Gram-Schmidt)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r % 2:
            raise ValueError(f"r is {self.r}, but must be even: else the student would not start as its base")
