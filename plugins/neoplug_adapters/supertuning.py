"""Super-Tuning: the largest entries of each weight are trained, all others are frozen; with r, a LoRA is added (Supra).

    W + S + lora_alpha / r B A,  S sparse, at the (1 - sparsity) largest entries of W, starts at 0

Source: arXiv 2607.09287.
"""

from dataclasses import dataclass
from typing import ClassVar

from neoplug import AdapterTraits
from neoplug_adapters.tuner import Tuner


@dataclass(eq=False)
class SuperTuning(Tuner):
    """Trains the largest entries of each weight, and with `r` also a LoRA (peft's Super-Tuning)."""

    name: ClassVar[str] = "supertuning"
    config: ClassVar[str] = "SupertuningConfig"
    # no `sized_by`: `sparsity` is not an integer, and r adds another adapter
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        not_on_quantised="it changes single entries of the weights, which are packed integers",
        seedless="the weights decide which of their entries train",
    )
    positive: ClassVar[tuple[str, ...]] = ("r", "lora_alpha")
    shares: ClassVar[tuple[str, ...]] = ("sparsity", "lora_dropout")

    sparsity: float = 0.99  # share of frozen entries, in [0, 1)
    select_top: bool = True  # the largest train; false: the smallest
    r: int | None = None  # the rank of an additional LoRA; left out: none
    lora_alpha: float | None = None  # scale of that LoRA is lora_alpha / r; left out: 2 r
    lora_dropout: float = 0.0  # in [0, 1), on what A reads

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r is None and self.lora_alpha is not None:
            raise ValueError("lora_alpha is given, but there is no LoRA without r")
