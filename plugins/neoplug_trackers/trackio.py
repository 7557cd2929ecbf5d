"""Trackio: a local database, where trackio has its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from neoplug_trackers.accelerate_tracker import AccelerateTracker

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate.tracking import GeneralTracker


@dataclass(eq=False)
class Trackio(AccelerateTracker):
    """Log to trackio's local database; the runs of a study are one group."""

    package: ClassVar[str] = "trackio"
    # Its database elsewhere, and no copy of it on a server.
    offline: ClassVar[dict[str, str | None]] = {
        "TRACKIO_DIR": "{folder}/trackio",
        **dict.fromkeys(("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_WEBHOOK_URL")),
    }

    project: str = "neoplug"

    def make(self, path: Path, group: str | None) -> GeneralTracker:
        """Return accelerate's tracker; a resumed run goes on in the run of its name."""
        from accelerate.tracking import TrackioTracker

        return TrackioTracker(self.project, name=path.name, group=group, resume="allow")
