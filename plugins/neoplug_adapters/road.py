"""RoAd: pairs of outputs are rotated and scaled.

    R W,  R of 2 x 2 blocks alpha (cos theta, -sin theta; sin theta, cos theta);  alpha starts at 1, theta at 0

Source: Liao, Monz 2024, arXiv 2409.00119.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from neoplug import AdapterTraits
from neoplug_adapters.tuner import Tuner


@dataclass(eq=False)
class RoAd(Tuner):
    """Trained rotation and scale of pairs of outputs (peft's RoAd)."""

    name: ClassVar[str] = "road"
    config: ClassVar[str] = "RoadConfig"
    # no `sized_by`: `variant` has only three sizes
    traits: ClassVar[AdapterTraits] = AdapterTraits(seedless="all angles start at 0")
    positive: ClassVar[tuple[str, ...]] = ("group_size",)

    variant: Literal["road_1", "road_2", "road_4"] = "road_1"  # 1, 2 or 4 parameters per output
    group_size: int | None = None  # pairs are group_size / 2 apart; must divide all outputs; left out: up to 64

    def _fitted(self, targets: list[tuple[int, int]], total_steps: int) -> dict[str, Any]:
        return {"group_size": self._dividing("group_size", (outputs for _, outputs in targets), 64, step=2)}
