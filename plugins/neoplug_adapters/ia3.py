"""(IA)^3: a vector scales what each target puts out, or what it takes in.

    diag(l) W,  or W diag(l) for feedforward_modules;  l starts at 1

The paper scales keys, values and the inner states of feed-forward layers; here all linear layers, unless named.
Source: Liu et al. 2022, arXiv 2205.05638.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from neoplug import AdapterTraits
from neoplug_adapters.tuner import Tuner


@dataclass(eq=False)
class IA3(Tuner):
    """Peft's IA3."""

    name: ClassVar[str] = "ia3"
    config: ClassVar[str] = "IA3Config"
    # no size: nothing but the targets
    traits: ClassVar[AdapterTraits] = AdapterTraits(seedless="all vectors start at 1")

    feedforward_modules: list[str] = field(default_factory=list)  # name endings of targets that scale what they take in
