"""PSOFT: OFT restricted to each weight's r largest singular components.

    W - B A + B diag(b) R diag(a) A,  B A the truncated decomposition (SVD) of W, R orthogonal, starts as 1

Source: Wu et al. 2025, openreview FSHrinMArK.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from neoplug import AdapterTraits
from neoplug_adapters.tuner import Tuner


@dataclass(eq=False)
class PSOFT(Tuner):
    """OFT restricted to each weight's r largest singular components (peft's PSOFT)."""

    name: ClassVar[str] = "psoft"
    config: ClassVar[str] = "PsoftConfig"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="r",
        not_on_quantised="peft computes no singular components of integer weights",
        seedless="R starts as the identity, and the weights decide the rest",
    )
    positive: ClassVar[tuple[str, ...]] = ("r", "psoft_alpha")
    shares: ClassVar[tuple[str, ...]] = ("psoft_dropout",)

    r: int | None = None  # singular components; left out: 32, or if less those of the smallest target
    psoft_alpha: int = 32  # peft's scale is psoft_alpha / r
    psoft_dropout: float = 0.0  # in [0, 1), on what A reads
    psoft_orth: bool = True  # keep R orthogonal; false: any matrix
    psoft_mag_b: bool = True  # train b
    psoft_mag_a: bool = True  # train a
    use_cayley_neumann: bool = False  # a truncated series in place of the matrix inverse

    def _fitted(self, targets: list[tuple[int, int]], total_steps: int) -> dict[str, Any]:
        return {"r": self._up_to("r", min(size for target in targets for size in target), 32)}
