"""PVeRA: VeRA whose inner activations are sampled in training, from a normal distribution with trained mean and spread.

    W + diag(b) B z,  z ~ N(mean, spread) with mean and log-spread parts of diag(d) A x;  in evaluation z is the mean

Source: arXiv 2512.07703.
"""

from dataclasses import dataclass
from typing import ClassVar

from neoplug_adapters.tuner import Tuner


@dataclass(eq=False)
class PVeRA(Tuner):
    """VeRA with inner activations sampled from a trained normal distribution (peft's PVeRA)."""

    name: ClassVar[str] = "pvera"
    config: ClassVar[str] = "PveraConfig"
    positive: ClassVar[tuple[str, ...]] = ("r", "d_initial")
    shares: ClassVar[tuple[str, ...]] = ("pvera_dropout",)
    drawn: ClassVar[tuple[str, ...]] = ("projection_prng_key",)

    r: int = 256  # the rank of the shared pair, above 0
    pvera_dropout: float = 0.0  # in [0, 1), on what A reads
    d_initial: float = 0.1  # initial value of d
    projection_prng_key: int | None = None  # the seed of the shared pair; left out: drawn from the run's seed
    save_projection: bool = True  # store the shared pair; false: it is drawn again from its seed
