"""Which runs a study asks for, as a function of the study and of its ledger.

No state is kept: resuming, added arms and changed margins are differences between what is asked and what is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from neoplug.studies.jobs import Identities, Job, Outcome, Trial

if TYPE_CHECKING:
    from neoplug.studies.specification import Study

Phase = Literal["search", "extension", "test", "complete"]


@dataclass(frozen=True)
class Agenda:
    """What a study asks for, given what is in its ledger.

    phase    the first one of which jobs are missing: `search` runs the grid, `extension` what was added to it
    jobs     every job asked for so far, done or not: search jobs first, then test jobs, each by arm and seed
    missing  those that the ledger does not have; empty when the study is complete
    grid     searched key -> its values so far, ascending, extensions included; before `scale`
    trials   arm -> each of its trials so far, at its own scale
    chosen   arm -> the trial that its test runs use; absent until its search is done; None: no trial can be used
    """

    phase: Phase
    jobs: tuple[Job, ...]
    missing: tuple[Job, ...]
    grid: Mapping[str, tuple[float, ...]]
    trials: Mapping[str, tuple[Trial, ...]]
    chosen: Mapping[str, Trial | None]


def agenda(study: Study, done: Mapping[str, Outcome], identities: Identities) -> Agenda:
    """Return what the study asks for. `done` is the ledger: id -> its line."""
    raise NotImplementedError


def largest_agenda(study: Study, identities: Identities) -> tuple[int, int, int]:
    """Return the numbers of search jobs, of jobs that extensions add at most, and of test jobs."""
    raise NotImplementedError
