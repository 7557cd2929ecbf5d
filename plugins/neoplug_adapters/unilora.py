"""Uni-LoRA: all entries of all A and B are entries of one trained vector, assigned by a fixed random map.

    vec(A, B of all targets) = P theta,  P has one nonzero entry per row;  theta has theta_d_length numbers

Source: Li et al. 2025, arXiv 2506.00799.
"""

from dataclasses import dataclass
from typing import ClassVar

from neoplug import AdapterTraits
from neoplug_adapters.tuner import Tuner


@dataclass(eq=False)
class UniLoRA(Tuner):
    """LoRA whose matrices are all read from one trained vector by a fixed random map (peft's Uni-LoRA)."""

    name: ClassVar[str] = "unilora"
    config: ClassVar[str] = "UniLoraConfig"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="theta_d_length",
        starts_elsewhere="A and B are read from one random vector, so that B A is small, but not 0",
        not_on_quantised="the gradients that peft gives it there are not those of the dequantised base",
    )
    on_meta: ClassVar[bool] = False
    positive: ClassVar[tuple[str, ...]] = ("r", "theta_d_length", "init_theta_d_bound")
    shares: ClassVar[tuple[str, ...]] = ("unilora_dropout",)
    drawn: ClassVar[tuple[str, ...]] = ("proj_seed",)

    r: int = 4  # the rank, above 0
    theta_d_length: int = 256  # trained numbers in all
    unilora_dropout: float = 0.0  # in [0, 1), on what A reads
    init_theta_d_bound: float = 0.02  # they start uniform in +- this
    proj_seed: int | None = None  # the seed of the map; left out: drawn from the run's seed
    save_indices: bool = False  # store the map; false: it is drawn again from its seed
