"""A limit of the wall time of training, as a job of a cluster has one."""

from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from neoplug import hookimpl


@dataclass(eq=False)
class TimeBudget:
    """End training once it has taken `hours` of wall time, over all sessions of a resumed run."""

    hours: float  # above 0
    _earlier: float = field(default=0.0, init=False)  # seconds of earlier sessions
    _began: float = field(default_factory=monotonic, init=False)

    def __post_init__(self) -> None:
        if not 0 < self.hours < float("inf"):
            raise ValueError(f"hours is {self.hours}, but must be finite and above 0")

    @hookimpl
    def should_stop(self) -> str | None:
        """Return the reason after the budget."""
        if (seconds := self._seconds()) < 3600 * self.hours:
            return None
        return f"{seconds / 3600:.2f} hours have passed, of a budget of {self.hours:g}"

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds so far."""
        return {"seconds": self._seconds()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._earlier, self._began = state["seconds"], monotonic()

    def _seconds(self) -> float:
        return self._earlier + monotonic() - self._began
