"""HiRA: the change is the weight times a low-rank product, element by element, which has a high rank.

    W + W * (B A),  * element by element

Source: Huang et al. 2025, openreview TwJrTz9cRS.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from neoplug_adapters.tuner import Tuner


@dataclass(eq=False)
class HiRA(Tuner):
    """A change of high rank: the weight times a low-rank product, element by element (peft's HiRA)."""

    name: ClassVar[str] = "hira"
    config: ClassVar[str] = "HiraConfig"
    positive: ClassVar[tuple[str, ...]] = ("r",)
    shares: ClassVar[tuple[str, ...]] = ("hira_dropout",)

    r: int = 32  # the rank, above 0
    hira_dropout: float = 0.0  # in [0, 1), on what A reads
    init_weights: bool | Literal["gaussian"] = True  # true (A uniform, B zero), gaussian (A normal, B zero)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_weights is False:
            raise ValueError("init_weights is false, so the student would not start at its base; leave it out")
