"""SIGINT and SIGTERM: while a run trains, save first, then end; elsewhere end at once, as a second SIGINT does."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from neoplug.errors import Interrupted

CAUGHT = (signal.SIGINT, signal.SIGTERM)


class EndedNow(BaseException):
    """Raised where a signal finds the run. No Exception: libraries catch those and make errors of their own."""

    def __init__(self, number: int) -> None:
        self.signal = number
        super().__init__("stopped by a signal; nothing was to be saved")


@dataclass
class Stop:
    """The signal that requested the end of the run, if one did; `deferred` while the loop polls it and saves."""

    signal: int | None = None
    deferred: bool = False

    def request(self, number: int, frame: FrameType | None) -> None:
        """Note the signal, or end at once."""
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number
        if not self.deferred:
            raise EndedNow(number)

    @contextmanager
    def deferring(self) -> Iterator[None]:
        """Defer signals until the loop polls them."""
        self.deferred = True
        try:
            yield
        finally:
            self.deferred = False


@contextmanager
def stopping() -> Iterator[Stop]:
    """Catch the signals while this context lasts; outside the main thread, where Python cannot, catch nothing.

    Raises:
        Interrupted: a signal came while nothing had to be saved.
    """
    stop = Stop()
    try:
        before = {number: signal.signal(number, stop.request) for number in CAUGHT}
    except ValueError:
        before = {}
    try:
        yield stop
    except EndedNow as ended:
        raise Interrupted(ended.signal, str(ended)) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
