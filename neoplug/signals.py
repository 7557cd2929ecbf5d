"""SIGINT and SIGTERM while a run trains: save first, then end. A second SIGINT ends at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

CAUGHT = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Stop:
    """Which signal asked the run to end, if any did."""

    signal: int | None = None

    def asked(self, number: int, frame: FrameType | None) -> None:
        """Note the signal; the second SIGINT is the user's last word."""
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number


@contextmanager
def stopping() -> Iterator[Stop]:
    """Catch the signals while this context lasts; outside the main thread, where Python cannot, catch nothing."""
    stop = Stop()
    try:
        before = {number: signal.signal(number, stop.asked) for number in CAUGHT}
    except ValueError:
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
