"""A push against a server with a fault at one step, before or after it carried out the request."""

from collections.abc import Sequence
from pathlib import Path

from faults_command import answer
from faults_lab import Lab, Result, in_home

TITLE = "faults of a server at one step of a push"
PROMISE = "what is said is what the server holds"
QUICK = 12
Case = tuple[str, str, bool]  # fault, step, whether the request is carried out before the fault


def cases(lab: Lab) -> Sequence[Case]:
    """Return all faults at all steps; late ones at the steps that change what the server holds."""
    from tests.runs.test_push_faults import FAULTS, STATES, STEPS

    return [(fault, step, late) for fault in FAULTS for step in STEPS for late in (False, True)[: 1 + (step in STATES)]]


def attempt(lab: Lab, case: Case) -> Result:
    """Push to a server with the fault, and compare what is said with what it holds."""
    with lab.copy("home", "finished") as folder:
        found = answer(in_home(folder / "home", lambda: _push(folder, *case)))
    outcome = found.out.strip() if not found.code else "failed"
    return Result(outcome, "" if not found.code else f"{case}: {found.last_line}")


def _push(folder: Path, fault: str, step: str, late: bool) -> None:
    import warnings

    import pytest

    from neoplug.export.staging import staged
    from tests.runs import hub_server
    from tests.runs.test_push_faults import FAULTS, outcome, validate

    warnings.simplefilter("ignore")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("neoplug.export.hub_client.SILENCE", 0.5)
        with hub_server.running(folder / "hub", patch) as hub:
            hub.reset({step: FAULTS[fault]}, late)
            hub.expected = staged(folder / "finished", "me/student").keys()
            published, text = outcome(folder / "finished")
            validate(hub, published, text)
            print("published" if published else "refused" if "unknown" not in text.split("\n")[0] else "unknown")
