"""(IA)^3: a trained vector scales the outputs of each target, or its inputs.

    diag(l) W,  or W diag(l) for feedforward_modules;  l starts at 1

The paper scales keys, values and the inner states of feed-forward layers; here all linear layers are scaled by default.
Source: Liu et al. 2022, arXiv 2205.05638.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from neoplug import AdapterTraits
from neoplug_adapters.tuner import Tuner


@dataclass(eq=False)
class IA3(Tuner):
    """Trained scales of each target's outputs, or of its inputs (peft's IA3)."""

    name: ClassVar[str] = "ia3"
    config: ClassVar[str] = "IA3Config"
    # no `sized_by`: only the targets set the number of parameters
    traits: ClassVar[AdapterTraits] = AdapterTraits(seedless="all vectors start at 1")

    feedforward_modules: list[str] = field(default_factory=list)  # name endings of targets whose inputs are scaled
