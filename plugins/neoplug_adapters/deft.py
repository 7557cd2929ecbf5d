"""DEFT: r output directions of each weight are removed, and their replacement is trained.

    (1 - P relu(P)^T) W + alpha / r P R, or with qr (1 - Q Q^T) W + alpha / r Q R, Q from P's QR decomposition
    P random;  R starts as the removed part, so that the initial weight is W

Source: Kumar et al. 2025, arXiv 2509.22793.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from neoplug import AdapterTraits
from neoplug_adapters.tuner import Tuner


@dataclass(eq=False)
class DEFT(Tuner):
    """Replaces r output directions of each weight by trained ones (peft's DEFT)."""

    name: ClassVar[str] = "deft"
    config: ClassVar[str] = "DeftConfig"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="r",
        not_on_quantised="it projects the weights themselves, which are packed integers",
    )
    positive: ClassVar[tuple[str, ...]] = ("r", "alpha")
    shares: ClassVar[tuple[str, ...]] = ("deft_dropout",)

    r: int = 8  # directions, above 0
    decomposition_method: Literal["relu", "qr"] = "relu"  # relu: directions relu(P); qr: orthonormal ones
    alpha: int | None = None  # scale is alpha / r; left out: the scale is 1
    deft_dropout: float = 0.0  # in [0, 1), on the inputs
