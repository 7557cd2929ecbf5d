"""OSF: full fine-tuning of each weight but in the directions of its largest singular components, which are frozen.

    U S V of W: the first effective_rank components stay, the rest train, their gradients orthogonal to the first

Source: Nayak et al. 2025, arXiv 2504.07097.
"""

from dataclasses import dataclass
from typing import ClassVar

from neoplug import AdapterTraits
from neoplug_adapters.tuner import Tuner


@dataclass(eq=False)
class OSF(Tuner):
    """Peft's OSF."""

    name: ClassVar[str] = "osf"
    config: ClassVar[str] = "OSFConfig"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="effective_rank",
        not_on_quantised="peft takes no singular components of integer weights",
        seedless="the singular components of a weight are its own",
    )

    effective_rank: int | float | None = None  # components that stay: a number, or a share below 1; left out: half
