"""Base of the trackers that accelerate supports: it starts and closes them; they get numbers by joined keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from neoplug import Problem, hookimpl

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate.tracking import GeneralTracker

PREFIX = {"student": "held_out", "teacher": "teacher"}  # of the metrics of an evaluation


@dataclass(eq=False)
class AccelerateTracker:
    """A tracker of accelerate. Nested keys are joined by `/`, as `losses/forward_kl` and `held_out/jsd`."""

    package: ClassVar[str]  # that the tracker needs
    _tracker: Any = field(init=False)  # accelerate's, once it is open

    def make(self, path: Path, group: str | None) -> GeneralTracker:
        """Return accelerate's tracker for the run in the directory `path`, which has its name."""
        raise NotImplementedError

    @hookimpl
    def check(self) -> list[Problem]:
        """Refuse a tracker whose package is not installed."""
        if find_spec(self.package):
            return []
        return [Problem(f"the package {self.package} is not installed", fix=f"`pip install {self.package}`")]

    @hookimpl
    def open_tracker(self, path: Path, config: dict[str, Any], group: str | None) -> None:
        """Start the tracker and store the recipe in it."""
        from accelerate.state import PartialState

        PartialState()  # a run has it already; accelerate's trackers cannot log without it
        self._tracker = self.make(path, group)
        self._tracker.start()
        self._tracker.store_init_configuration(
            {key: str(value) if isinstance(value, list) else value for key, value in joined(config)}
        )

    @hookimpl
    def on_log(self, line: dict[str, Any]) -> None:
        """Log the numbers of a line, but for its step, under the step."""
        self._tracker.log(numbers({key: value for key, value in line.items() if key != "step"}), step=line["step"])

    @hookimpl
    def on_measured(self, step: int, measured: dict[str, Any], whose: Literal["student", "teacher"]) -> None:
        """Log the numbers of an evaluation under its step."""
        self._tracker.log(numbers({PREFIX[whose]: measured}), step=step)

    @hookimpl
    def close_tracker(self) -> None:
        """Write what is buffered."""
        self._tracker.finish()


def joined(values: Mapping[str, Any], *above: str) -> Iterator[tuple[str, Any]]:
    """Yield the values of nested maps by their keys, joined by `/`."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from joined(value, *above, str(key))
        else:
            yield "/".join([*above, str(key)]), value


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of nested maps, without booleans, by their joined keys."""
    return {
        key: value for key, value in joined(values) if isinstance(value, int | float) and not isinstance(value, bool)
    }
