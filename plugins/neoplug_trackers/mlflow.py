"""MLflow: its tracking server or store, as MLflow's environment variables say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from neoplug_trackers.accelerate_tracker import AccelerateTracker

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate.tracking import GeneralTracker


@dataclass(eq=False)
class MLflow(AccelerateTracker):
    """Log to MLflow; the runs of a study have its name as the tag `group`."""

    package: ClassVar[str] = "mlflow"
    offline: ClassVar[dict[str, str]] = {
        "MLFLOW_TRACKING_URI": "sqlite:///{folder}/mlflow.db",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    exempt: ClassVar[dict[str, str]] = {"current_folder": "MLflow writes where its environment variables say"}

    experiment_name: str = "neoplug"

    def make(self, path: Path, group: str | None) -> GeneralTracker:
        """Return accelerate's tracker; MLFLOW_EXPERIMENT_NAME comes before the option."""
        from accelerate.tracking import MLflowTracker

        tags = {"group": group} if group else None
        return MLflowTracker(self.experiment_name, logging_dir=str(path / "mlflow"), run_name=path.name, tags=tags)
