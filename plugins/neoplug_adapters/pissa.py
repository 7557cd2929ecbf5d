"""PiSSA: A and B start as each weight's r largest singular components, which are removed from the base.

    W = U S V;  A = sqrt(S[:r] / scale) V[:r],  B = U[:, :r] sqrt(S[:r] / scale)

Source: Meng, Wang, Zhang 2024, arXiv 2404.02948.
"""

import re
from dataclasses import dataclass, replace
from typing import ClassVar

from neoplug import AdapterTraits
from neoplug_adapters.residual_base import ResidualBase


@dataclass(eq=False)
class PiSSA(ResidualBase):
    """LoRA that starts as each weight's r largest singular components, removed from the base (PiSSA)."""

    name: ClassVar[str] = "pissa"
    traits: ClassVar[AdapterTraits] = replace(
        ResidualBase.traits,
        seedless="the weights decide",
    )

    init_lora_weights: str = "pissa"  # pissa, or pissa_niter_16: a faster randomised decomposition, 16 iterations

    def _check_start(self) -> None:
        if not re.fullmatch(r"pissa(_niter_\d+)?", self.init_lora_weights):
            raise ValueError(f"init_lora_weights is {self.init_lora_weights}, but must be pissa or pissa_niter_N")
