"""Weights & Biases: its server, or with WANDB_MODE=offline the folder `wandb` of the run alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from neoplug_trackers.accelerate_tracker import AccelerateTracker

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate.tracking import GeneralTracker


@dataclass(eq=False)
class WandB(AccelerateTracker):
    """Log to Weights & Biases; the runs of a study are one group, and files are in the folder `wandb` of the run."""

    package: ClassVar[str] = "wandb"
    offline: ClassVar[dict[str, str]] = {"WANDB_MODE": "offline"}

    project: str = "neoplug"

    def make(self, path: Path, group: str | None) -> GeneralTracker:
        """Return accelerate's tracker."""
        from accelerate.tracking import WandBTracker

        return WandBTracker(self.project, name=path.name, group=group, dir=str(path))
