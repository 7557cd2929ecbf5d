"""Reporting to experiment trackers through accelerate; metrics.jsonl remains the complete record.

A tracker never ends a run: if one fails, the error is logged and nothing more is reported to it.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neoplug.registry.nested import leaves, numbers

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

logger = logging.getLogger(__name__)

PROJECT = "neoplug"


class Trackers:
    """The trackers that a recipe reports to, on the main process.

    names   tensorboard, trackio, wandb, mlflow
    run     the run directory: its name is the run's name in each tracker; trackers write files into it
    config  the resolved recipe
    group   what the run belongs to, by which wandb and trackio group it and mlflow tags it; None: nothing
    """

    def __init__(self, names: Sequence[str], run: Path, config: Mapping[str, Any], group: str | None = None) -> None:
        self.group = group
        self.running: dict[str, GeneralTracker] = {}
        shown = {
            "/".join(map(str, path)): str(value) if isinstance(value, list) else value
            for path, value in leaves(config)
            if value != {}
        }
        for name in names:
            self._guarded(name, lambda name=name: self._start(name, run.absolute(), shown))  # type: ignore[misc]

    def step(self, line: Mapping[str, Any]) -> None:
        """Report a line of metrics.jsonl."""
        self._log({key: value for key, value in line.items() if key != "step"}, line["step"])

    def evaluation(self, step: int, measured: Mapping[str, Any], prefix: str = "held_out") -> None:
        """Report an evaluation after `step` optimizer steps, its metrics named PREFIX/METRIC."""
        self._log({prefix: measured}, step)

    def finish(self) -> None:
        """Close all trackers, which write what they have buffered."""
        for name, tracker in list(self.running.items()):
            self._guarded(name, tracker.finish)

    def _start(self, name: str, run: Path, config: dict[str, Any]) -> None:
        tracker = _tracker(name, run, self.group)
        tracker.start()
        tracker.store_init_configuration(config)
        self.running[name] = tracker

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        shown = numbers(values, "/")
        for name, tracker in list(self.running.items()):
            self._guarded(name, lambda tracker=tracker: tracker.log(shown, step=step))  # type: ignore[misc]

    def _guarded(self, name: str, act: Callable[[], None]) -> None:
        """Call `act`; if it fails, log the error and drop the tracker."""
        try:
            act()
        except Exception as error:  # whatever a server or a library of a tracker may raise
            self.running.pop(name, None)
            logger.warning(
                "%s is left out from here on: %s: %s; metrics.jsonl has it all", name, type(error).__name__, error
            )
            logger.debug("what %s raised", name, exc_info=True)


def _tracker(name: str, run: Path, group: str | None) -> "GeneralTracker":
    from accelerate import tracking

    if name == "tensorboard":
        return tracking.TensorBoardTracker("tensorboard", logging_dir=run)
    if name == "mlflow":
        tags = {"group": group} if group else None
        return tracking.MLflowTracker(PROJECT, logging_dir=str(run / "mlflow"), run_name=run.name, tags=tags)
    if name == "trackio":
        return tracking.TrackioTracker(PROJECT, name=run.name, group=group, resume="allow")
    return tracking.WandBTracker(PROJECT, name=run.name, group=group, dir=str(run))
