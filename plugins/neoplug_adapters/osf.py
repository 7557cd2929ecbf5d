"""OSF: full fine-tuning of each weight except its largest singular components, which are frozen.

    W = U S V: the first effective_rank components are frozen, the rest train, with gradients orthogonal to the first

Source: Nayak et al. 2025, arXiv 2504.07097.
"""

from dataclasses import dataclass
from typing import ClassVar

from neoplug import AdapterTraits
from neoplug_adapters.tuner import Tuner


@dataclass(eq=False)
class OSF(Tuner):
    """Full fine-tuning except for each weight's largest singular components, which are frozen (peft's OSF)."""

    name: ClassVar[str] = "osf"
    config: ClassVar[str] = "OSFConfig"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="effective_rank",
        not_on_quantised="peft computes no singular components of integer weights",
        seedless="the weights decide",
    )

    effective_rank: int | float | None = None  # frozen components: a number, or a share below 1; left out: half
