"""RoAd: pairs of outputs are turned and stretched in their plane.

    R W,  R of 2 x 2 blocks alpha (cos theta, -sin theta; sin theta, cos theta);  alpha starts at 1, theta at 0

Source: Liao, Monz 2024, arXiv 2409.00119.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from neoplug import AdapterTraits
from neoplug_adapters.tuner import Tuner


@dataclass(eq=False)
class RoAd(Tuner):
    """Peft's RoAd."""

    name: ClassVar[str] = "road"
    config: ClassVar[str] = "RoadConfig"
    # no size: `variant` has steps of two
    traits: ClassVar[AdapterTraits] = AdapterTraits(seedless="all angles start at 0")
    positive: ClassVar[tuple[str, ...]] = ("group_size",)

    variant: Literal["road_1", "road_2", "road_4"] = "road_1"  # 1, 2 or 4 numbers an output
    group_size: int | None = (
        None  # twice the distance between the two of a pair; divides all targets' outputs; left out: up to 64
    )

    def _fitted(self, targets: list[tuple[int, int]], total_steps: int) -> dict[str, Any]:
        return {"group_size": self._dividing("group_size", (outputs for _, outputs in targets), 64, step=2)}
