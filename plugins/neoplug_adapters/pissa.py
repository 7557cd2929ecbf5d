"""PiSSA: A and B start as each weight's r largest singular components, which the base gives up.

    W = U S V;  A = sqrt(S[:r] / scale) V[:r],  B = U[:, :r] sqrt(S[:r] / scale)

Source: Meng, Wang, Zhang 2024, arXiv 2404.02948.
"""

import re
from dataclasses import dataclass, replace
from typing import ClassVar

from neoplug import AdapterTraits
from neoplug_adapters.moved_base import MovedBase


@dataclass(eq=False)
class PiSSA(MovedBase):
    """Peft's PiSSA."""

    name: ClassVar[str] = "pissa"
    traits: ClassVar[AdapterTraits] = replace(
        MovedBase.traits,
        seedless="the singular components of a weight are its own",
    )

    init_lora_weights: str = "pissa"  # pissa, or pissa_niter_16: faster, by a randomised decomposition of 16 rounds

    def _check_start(self) -> None:
        if not re.fullmatch(r"pissa(_niter_\d+)?", self.init_lora_weights):
            raise ValueError(f"init_lora_weights is {self.init_lora_weights}, but must be pissa or pissa_niter_N")
