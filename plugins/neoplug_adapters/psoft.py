"""PSOFT: OFT inside each weight's r largest singular components.

    W - B A + B diag(b) R diag(a) A,  B A the truncated decomposition of W, R orthogonal, from the identity

Source: Wu et al. 2025, openreview FSHrinMArK.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from neoplug import AdapterTraits
from neoplug_adapters.tuner import Tuner


@dataclass(eq=False)
class PSOFT(Tuner):
    """Peft's PSOFT."""

    name: ClassVar[str] = "psoft"
    config: ClassVar[str] = "PsoftConfig"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="r",
        not_on_quantised="peft takes no singular components of integer weights",
        seedless="R starts as the identity, and the singular components of a weight are its own",
    )
    positive: ClassVar[tuple[str, ...]] = ("r", "psoft_alpha")
    shares: ClassVar[tuple[str, ...]] = ("psoft_dropout",)

    r: int | None = None  # singular components; left out: 32, or as many as the smallest target has
    psoft_alpha: int = 32  # as peft has it: its own scale is psoft_alpha / r
    psoft_dropout: float = 0.0  # in [0, 1), on what A reads
    psoft_orth: bool = True  # keep R orthogonal; false: any matrix
    psoft_mag_b: bool = True  # train b
    psoft_mag_a: bool = True  # train a
    use_cayley_neumann: bool = False  # a series in place of the inverse

    def _fitted(self, targets: list[tuple[int, int]], total_steps: int) -> dict[str, Any]:
        return {"r": self._up_to("r", min(size for target in targets for size in target), 32)}
