"""What each process of a run reports of its end to the others, which read it where a collective operation fails."""

import time
from contextlib import suppress

from torch.distributed import PrefixStore, Store
from torch.distributed.distributed_c10d import _get_default_store

LOST, TIMED_OUT = "lost a connection", "waited in vain"  # of processes that another one's end or delay ended
PAUSE = 0.01  # seconds between two looks


class Notices:
    """The notices of the processes of a run, in the store in which they found each other.

    The store is in the launcher's process, or in that of rank 0: where that is gone, nothing is written or read.

    size  number of processes; a single one has no store
    """

    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size
        self._store: Store | None = PrefixStore("neoplug", _get_default_store()) if size > 1 else None

    def write(self, text: str) -> None:
        """Report why this process ends: LOST, TIMED_OUT, or the sentence of an error that arose in it."""
        if self._store is not None:
            with suppress(RuntimeError):  # torch's errors of stores are some
                self._store.set(str(self._rank), text)

    def read(self, seconds: float) -> dict[int, str]:
        """Return rank -> notice of the other processes.

        It waits for so many seconds, or until each has written one, or one that is neither LOST nor TIMED_OUT.
        """
        deadline = time.monotonic() + seconds
        found = self._written()
        while len(found) < self._size - 1 and not faults(found) and time.monotonic() < deadline:
            time.sleep(PAUSE)
            found = self._written()
        return found

    def _written(self) -> dict[int, str]:
        if self._store is None:
            return {}
        found = {}
        with suppress(RuntimeError):
            for rank in range(self._size):
                if rank != self._rank and self._store.check([str(rank)]):
                    found[rank] = self._store.get(str(rank)).decode()
        return found


def faults(notices: dict[int, str]) -> dict[int, str]:
    """Return the notices of the processes in which an error arose."""
    return {rank: text for rank, text in notices.items() if text not in (LOST, TIMED_OUT)}
