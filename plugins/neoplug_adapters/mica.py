"""MiCA: B is each weight's r minor left singular vectors, frozen; A starts at 0 and trains.

    W + scale U[:, -r:] A

Source: arXiv 2604.01694, by peft's account of it.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from neoplug import AdapterTraits
from neoplug_adapters.lora import LoRA


@dataclass(eq=False)
class MiCA(LoRA):
    """Peft's MiCA."""

    name: ClassVar[str] = "mica"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="r",
        not_on_quantised="peft takes no singular vectors of integer weights",
        not_on_experts="peft takes singular vectors of single matrices alone",
        seedless="the singular vectors of a weight are its own",
    )
    linear_alone: ClassVar[bool] = True

    init_lora_weights: Literal["mica"] = "mica"  # fixed by the plugin

    def _check_start(self) -> None:
        """Accept it: there is one."""
