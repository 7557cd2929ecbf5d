"""What a study is doing: written to status.json while it runs, and read by `--status` from another terminal."""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from neoplug.files import read_json, write_atomically
from neoplug.studies.directory import StudyDir
from neoplug.studies.ledger import Row

INTERVAL = 1.0  # seconds between two writes of the same phase


@dataclass(frozen=True)
class State:
    """The state of a study.

    phase         search, extension, test or complete
    expected      number of jobs: those known so far, and test jobs that the search leads to
    counts        status -> number of jobs that are done
    running       jobs at work: `label` and `since` (seconds since the epoch)
    seconds_left  estimated from the jobs that this process saw; None before the first
    left_out      status -> number of jobs in the ledger that the study no longer asks for
    """

    name: str
    phase: str
    expected: int
    counts: Mapping[str, int] = field(default_factory=dict)
    running: Sequence[Mapping[str, Any]] = ()
    seconds_left: float | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """Number of jobs that are done."""
        return sum(self.counts.values())


class Watch(Protocol):
    """Receives the progress of a study; must not raise."""

    def update(self, state: State) -> None:
        """Called a few times a second, and whenever the state changes."""

    def ended(self, row: Row, label: str) -> None:
        """Called for each job that is done."""


class Unwatched:
    """Ignores the progress of a study."""

    def update(self, state: State) -> None:
        """Do nothing."""

    def ended(self, row: Row, label: str) -> None:
        """Do nothing."""


@dataclass(eq=False)
class StatusFile:
    """Writes the state to status.json: at each change of the phase, and else at most once in INTERVAL."""

    directory: StudyDir
    _phase: str = ""
    _at: float = 0.0

    def update(self, state: State) -> None:
        """Write the state."""
        if state.phase == self._phase and time.monotonic() < self._at + INTERVAL:
            return
        self._phase, self._at = state.phase, time.monotonic()
        write_atomically(self.directory.status_file, json.dumps(asdict(state), indent=1) + "\n")


def read_state(directory: StudyDir) -> State | None:
    """Return the last state that the study wrote, with what the ledger has by now; None where there is none.

    Raises DamageError where a file is damaged.
    """
    if not directory.status_file.exists():
        return None
    content = read_json(directory.status_file, "remove it; the study writes it again")
    ledger = directory.ledger
    ledger.refresh()
    known = {name: content[name] for name in State.__dataclass_fields__ if name in content}
    running = [entry for entry in content["running"] if entry["job"] not in ledger.rows]
    counts = Counter(row.status for row in ledger.rows.values()) - Counter(known.pop("left_out", {}))
    return State(**{**known, "counts": dict(counts.most_common()), "running": running if directory.is_held else []})
