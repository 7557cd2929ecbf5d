"""PEANuT: each change is the output of a small trained network that reads the weight.

    W + scaling f(W),  f: A, then depth layers down and up with act_fn between, then B, which starts at 0

Source: Zhong et al. 2024, arXiv 2410.01870.
"""

from dataclasses import dataclass
from typing import ClassVar

from neoplug import AdapterTraits
from neoplug_adapters.tuner import Tuner


@dataclass(eq=False)
class PEANuT(Tuner):
    """A change computed by a small trained network that reads the weight itself (peft's PEANuT)."""

    name: ClassVar[str] = "peanut"
    config: ClassVar[str] = "PeanutConfig"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="r",
        not_on_quantised="its network reads the weights themselves, which are packed integers",
    )
    positive: ClassVar[tuple[str, ...]] = ("r", "scaling")

    r: int = 32  # width of the network
    depth: int = 0  # layers on either side of the middle, 0 or more
    act_fn: str = "relu"  # activation function, by its name in transformers
    scaling: float = 1.0  # factor of the change, above 0
