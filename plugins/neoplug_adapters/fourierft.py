"""FourierFT: the change is the inverse Fourier transform of a few trained coefficients at random frequencies.

    W + scaling Re IDFT2(C),  C sparse: n_frequency entries, at the same frequencies in each target

Source: Gao et al. 2024, arXiv 2405.03003.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from neoplug import AdapterTraits
from neoplug_adapters.tuner import Tuner


@dataclass(eq=False)
class FourierFT(Tuner):
    """A change given by a few trained Fourier coefficients at random frequencies (peft's FourierFT)."""

    name: ClassVar[str] = "fourierft"
    config: ClassVar[str] = "FourierFTConfig"
    traits: ClassVar[AdapterTraits] = AdapterTraits(sized_by="n_frequency")
    positive: ClassVar[tuple[str, ...]] = ("n_frequency", "scaling")
    drawn: ClassVar[tuple[str, ...]] = ("random_loc_seed",)
    fixed: ClassVar[dict[str, Any]] = {"init_weights": True}  # coefficients start at 0

    n_frequency: int | None = None  # coefficients per target; left out: 1000, or if less the size of the smallest
    scaling: float = 150.0  # of the change
    random_loc_seed: int | None = None  # the seed of the frequencies; left out: drawn from the run's seed

    def _fitted(self, targets: list[tuple[int, int]], total_steps: int) -> dict[str, Any]:
        most = min(inputs * outputs for inputs, outputs in targets)
        return {"n_frequency": self._up_to("n_frequency", most, 1000)}
