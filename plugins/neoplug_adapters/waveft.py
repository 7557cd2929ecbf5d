"""WaveFT: the change is the inverse wavelet transform of a few trained coefficients at random positions.

    W + scaling IDWT2(C),  C sparse: n_frequency entries

Source: Bilican et al. 2025, arXiv 2505.12532.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from neoplug import AdapterTraits
from neoplug_adapters.tuner import Tuner


@dataclass(eq=False)
class WaveFT(Tuner):
    """A change given by a few trained wavelet coefficients at random positions (peft's WaveFT)."""

    name: ClassVar[str] = "waveft"
    config: ClassVar[str] = "WaveFTConfig"
    traits: ClassVar[AdapterTraits] = AdapterTraits(sized_by="n_frequency")
    positive: ClassVar[tuple[str, ...]] = ("n_frequency", "scaling")
    drawn: ClassVar[tuple[str, ...]] = ("random_loc_seed",)

    n_frequency: int | None = None  # coefficients per target; left out: 2592, or if less the size of the smallest
    scaling: float = 25.0  # of the change
    wavelet_family: str = "db1"  # by its name in pywavelets
    use_idwt: bool = True  # false: the coefficients are the change itself
    random_loc_seed: int | None = None  # the seed of the positions; left out: drawn from the run's seed
    proportional_parameters: bool = False  # more coefficients for larger targets

    def _fitted(self, targets: list[tuple[int, int]], total_steps: int) -> dict[str, Any]:
        most = min(inputs * outputs for inputs, outputs in targets)
        return {"n_frequency": self._up_to("n_frequency", most, 2592)}
