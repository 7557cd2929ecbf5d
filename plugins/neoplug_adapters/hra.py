"""HRA: r reflections, one after the other, of each weight's inputs; an orthogonal change of rank r.

    W (1 - 2 u1 u1^T) ... (1 - 2 ur ur^T);  the vectors start in equal pairs, which undo each other

Source: Yuan, Liu, Xu 2024, arXiv 2405.17484.
"""

from dataclasses import dataclass
from typing import ClassVar

from neoplug import AdapterTraits
from neoplug_adapters.tuner import Tuner


@dataclass(eq=False)
class HRA(Tuner):
    """Peft's HRA."""

    name: ClassVar[str] = "hra"
    config: ClassVar[str] = "HRAConfig"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="r",
        not_on_quantised="peft adapts no quantised layers so",
    )
    positive: ClassVar[tuple[str, ...]] = ("r",)

    r: int = 8  # reflections, above 0 and even, so that the student starts as its base
    apply_GS: bool = False  # make the vectors orthogonal, by Gram and Schmidt

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r % 2:
            raise ValueError(f"r is {self.r}, but must be even: else the student would not start as its base")
