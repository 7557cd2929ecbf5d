"""VeRA: all targets share one frozen random pair of matrices; two vectors per target train.

    W + diag(b) B diag(d) A,  A and B frozen and shared;  b starts at 0, d at d_initial

Source: Kopiczko, Blankevoort, Asano 2023, arXiv 2310.11454.
"""

from dataclasses import dataclass
from typing import ClassVar

from neoplug_adapters.tuner import Tuner


@dataclass(eq=False)
class VeRA(Tuner):
    """LoRA with one frozen random pair A, B for all targets and two trained vectors per target (peft's VeRA)."""

    name: ClassVar[str] = "vera"
    config: ClassVar[str] = "VeraConfig"
    positive: ClassVar[tuple[str, ...]] = ("r", "d_initial")
    shares: ClassVar[tuple[str, ...]] = ("vera_dropout",)
    drawn: ClassVar[tuple[str, ...]] = ("projection_prng_key",)

    r: int = 256  # the rank of the shared pair, above 0
    vera_dropout: float = 0.0  # in [0, 1), on what A reads
    d_initial: float = 0.1  # initial value of d
    projection_prng_key: int | None = None  # the seed of the shared pair; left out: drawn from the run's seed
    save_projection: bool = True  # store the shared pair; false: it is drawn again from its seed
