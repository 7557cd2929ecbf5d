"""SIGINT and SIGTERM: during training, save a checkpoint, then end; otherwise, and at a second SIGINT, end at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from neoplug.errors import ImmediateStop, Interrupted

CAUGHT = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Stop:
    """The request to stop a run.

    signal    number of the first signal received; None before that
    deferred  whether the training loop polls `signal` and ends by itself, so that signals raise nothing
    """

    signal: int | None = None
    deferred: bool = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: record it.

        Raises:
            ImmediateStop: signals are not deferred.
            KeyboardInterrupt: it is SIGINT and not the first signal.
        """
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number
        if not self.deferred:
            raise ImmediateStop(number)

    @contextmanager
    def deferring(self) -> Iterator[None]:
        """Set `deferred` while this context lasts."""
        self.deferred = True
        try:
            yield
        finally:
            self.deferred = False


@contextmanager
def stopping() -> Iterator[Stop]:
    """Handle the signals while this context lasts; outside the main thread, where Python cannot, leave them alone.

    Raises:
        Interrupted: a signal was received outside training.
    """
    stop = Stop()
    try:
        before = {number: signal.signal(number, stop.handle) for number in CAUGHT}
    except ValueError:
        before = {}
    try:
        yield stop
    except ImmediateStop as ended:
        raise Interrupted(ended.signal, str(ended)) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
