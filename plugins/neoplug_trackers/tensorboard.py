"""TensorBoard: event files in the folder `tensorboard` of the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from neoplug_trackers.accelerate_tracker import AccelerateTracker

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate.tracking import GeneralTracker


@dataclass(eq=False)
class TensorBoard(AccelerateTracker):
    """Write event files for TensorBoard into the folder `tensorboard` of the run."""

    package: ClassVar[str] = "tensorboard"

    def make(self, path: Path, group: str | None) -> GeneralTracker:
        """Return accelerate's tracker; TensorBoard has no groups."""
        from accelerate.tracking import TensorBoardTracker

        return TensorBoardTracker("tensorboard", logging_dir=path)
