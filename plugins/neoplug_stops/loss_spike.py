"""A loss far above its recent values: training that has become unstable."""

from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from neoplug import hookimpl


@dataclass(eq=False)
class LossSpike:
    """End training when the loss is far above the median of the steps before, several times in succession.

    It judges nothing while that median is not above 0, as it may be with a loss that can be negative.
    """

    factor: float = 2.0  # of the median, above 1
    window: int = 50  # steps before the spike, from 2; nothing is judged before there are as many
    patience: int = 3  # successive steps above the limit
    _recent: deque[float] = field(init=False)  # losses of the window, without those above the limit
    _above: int = field(default=0, init=False)  # successive steps above the limit

    def __post_init__(self) -> None:
        if not 1 < self.factor < float("inf"):
            raise ValueError(f"factor is {self.factor}, but must be finite and above 1")
        for name, least in (("window", 2), ("patience", 1)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name} is {value}, but must be at least {least}")
        self._recent = deque(maxlen=self.window)

    @hookimpl
    def should_stop(self, metrics: dict[str, Any], measured: dict[str, Any] | None) -> str | None:
        """Return the reason at the last step that the patience allows."""
        if measured is not None:
            return None
        loss = metrics["loss"]
        usual = median(self._recent) if len(self._recent) == self.window else 0.0
        if usual <= 0 or loss <= self.factor * usual:  # a multiple of a negative loss is no limit
            self._above = 0
            self._recent.append(loss)
            return None
        self._above += 1
        if self._above < self.patience:
            return None
        return f"the loss is {loss:.6g}, and the median of the {self.window} steps before the spike is {usual:.6g}"

    def state_dict(self) -> dict[str, Any]:
        """Return the recent losses and the steps above the limit."""
        return {"recent": [*self._recent], "above": self._above}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._recent, self._above = deque(state["recent"], maxlen=self.window), state["above"]
