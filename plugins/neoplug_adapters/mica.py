"""MiCA: B is each weight's r minor left singular vectors, frozen; A starts at 0 and trains.

    W + scale U[:, -r:] A

Source: arXiv 2604.01694, by peft's account of it.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from neoplug_adapters.lora import LoRA


@dataclass(eq=False)
class MiCA(LoRA):
    """Peft's MiCA."""

    name: ClassVar[str] = "mica"
    not_on_quantised: ClassVar[str] = "peft takes no singular vectors of integer weights"
    linear_alone: ClassVar[bool] = True
    not_on_experts: ClassVar[str] = "peft takes singular vectors of single matrices alone"
    seedless: ClassVar[str] = "the singular vectors of a weight are its own"

    init_lora_weights: Literal["mica"] = "mica"  # fixed by the plugin

    def _check_start(self) -> None:
        """Accept it: there is one."""
