"""DEFT: a few output directions of each weight are removed and trained from scratch.

    (1 - P relu(P)^T) W + alpha / r P R, or with qr (1 - Q Q^T) W + alpha / r Q R, Q of P's decomposition
    P random;  R starts as what puts back what was taken

Source: Kumar et al. 2025, arXiv 2509.22793.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from neoplug import AdapterTraits
from neoplug_adapters.tuner import Tuner


@dataclass(eq=False)
class DEFT(Tuner):
    """Peft's DEFT."""

    name: ClassVar[str] = "deft"
    config: ClassVar[str] = "DeftConfig"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="r",
        not_on_quantised="it projects the weights themselves, which are packed integers",
    )
    positive: ClassVar[tuple[str, ...]] = ("r", "alpha")
    shares: ClassVar[tuple[str, ...]] = ("deft_dropout",)

    r: int = 8  # directions, above 0
    decomposition_method: Literal["relu", "qr"] = "relu"  # relu as it is, qr makes the directions orthogonal
    alpha: int | None = None  # the scale is alpha / r; left out: 1
    deft_dropout: float = 0.0  # in [0, 1), on the inputs
