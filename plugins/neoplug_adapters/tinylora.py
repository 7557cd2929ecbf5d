"""TinyLoRA: u trained numbers per target mix u random matrices within each weight's r largest singular components.

    W + U S (sum_i v_i P_i) V,  U S V the truncated decomposition (SVD) of W, P frozen

Source: Morris et al. 2026, arXiv 2602.04118.
"""

from dataclasses import dataclass
from typing import ClassVar

from neoplug import AdapterTraits
from neoplug_adapters.tuner import Tuner


@dataclass(eq=False)
class TinyLoRA(Tuner):
    """u trained numbers per target: weights of random matrices in its largest singular components (peft's TinyLoRA)."""

    name: ClassVar[str] = "tinylora"
    config: ClassVar[str] = "TinyLoraConfig"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="u",
        not_on_quantised="peft computes no singular components of integer weights",
    )
    positive: ClassVar[tuple[str, ...]] = ("r", "u", "init_v_bound")
    shares: ClassVar[tuple[str, ...]] = ("tinylora_dropout",)
    drawn: ClassVar[tuple[str, ...]] = ("projection_seed",)

    r: int = 2  # singular components, above 0
    u: int = 64  # trained numbers per target
    weight_tying: float = 0.0  # the share of targets that share their numbers: 1 is one vector for all
    tinylora_dropout: float = 0.0  # in [0, 1), on what V reads
    projection_seed: int | None = None  # the seed of P; left out: drawn from the run's seed
    save_projection: bool = True  # store P; false: it is drawn again from its seed
    init_v_bound: float = 0.02  # v starts uniform in +- this
