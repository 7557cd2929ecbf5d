"""The result of a run that failed or was interrupted: what it says, and which process writes it."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from neoplug.distributed.processes import Ended, ended, is_connection_error
from neoplug.distributed.world import World
from neoplug.environment.determinism import without_algorithm
from neoplug.errors import Interrupted, NeoplugError, PluginError, RunError, redacted
from neoplug.runs.directory import RunDir
from neoplug.runs.result import RunResult, RunState, Status
from neoplug.runs.signals import CAUGHT, ImmediateStop, Stop
from neoplug.training import checkpoint

logger = logging.getLogger(__name__)

GRACE = 1.0  # seconds in which the system closes a process whose connections are closed already
SHOWN = 8  # processes of other machines


@dataclass(eq=False)
class FailureWriter:
    """Writes the result of a run that failed: in the main process, or in the first that is left where that is gone."""

    directory: RunDir
    world: World
    stop: Stop
    earlier: bytes | None = field(init=False)  # the result of a run that is resumed

    def __post_init__(self) -> None:
        self.earlier = self.written()

    def written(self) -> bytes | None:
        """Return the bytes of result.json; None while there is none."""
        file = self.directory.path / "result.json"
        return file.read_bytes() if file.is_file() else None

    def write(self, error: BaseException, state: RunState, step: int) -> BaseException:
        """Write the result of a run that ended with `error`, undisturbed by signals; return the error to raise.

        That is `error`, or, where the end of other processes of the run caused it, one that names these.

        state  what the run has measured
        step   the last one that it finished
        """
        with self.stop.deferring():  # torchrun stops the processes that are left
            return self._write(error, state, step)

    def _write(self, error: BaseException, state: RunState, step: int) -> BaseException:
        lost = _lost(self.world, error)
        what = _fate(lost) or _elsewhere(self.world, error)
        failure = self.explained(what, step, error) if what else without_algorithm(error) or error
        gone = {end.process.rank for end in lost}
        first = min(process.rank for process in self.world.processes if process.rank not in gone)
        if isinstance(failure, PluginError) and self.world.is_main:
            failure.log = self.directory.log
        explained = isinstance(failure, NeoplugError | ImmediateStop)
        status: Status = "interrupted" if isinstance(failure, Interrupted | ImmediateStop) else "failed"
        reason = redacted(str(failure) if explained else f"{type(failure).__name__}: {failure}")
        logger.debug("%s: %s", status, reason, exc_info=failure.__cause__ or (None if explained else failure))
        # Where another wrote the result before it ended too, that stays.
        if self.world.rank == first and (self.world.is_main or self.written() == self.earlier):
            self.directory.write_result(RunResult(format=1, status=status, reason=reason, **state.measured()))
        return failure

    def explained(self, what: str, step: int, error: BaseException) -> RunError:
        """Return an error that says what happened to which processes, what is saved, and how to go on."""
        saved = max(checkpoint.steps(self.directory.checkpoints), default=0)
        done = f"step {step} was the last that finished" if step else "no step was finished"
        kept = f"step {saved} the last that was saved" if saved else "none was saved"
        resume = f"goes on after step {saved}" if saved else "begins again at step 0"
        failure = _explained(f"{what}; {done}, {kept}", f"with --resume, which {resume}", self.world)
        failure.__cause__ = error
        return failure


@contextmanager
def lost_processes_named(world: World) -> Iterator[None]:
    """Raise RunError in place of an error that the end of other processes caused, before the run trains."""
    try:
        yield
    except (Exception, ImmediateStop) as error:
        if what := _fate(_lost(world, error)) or _elsewhere(world, error):
            raise _explained(f"{what}, before the first step", "", world) from error
        raise


def _explained(what: str, how: str, world: World) -> RunError:
    """Return an error that says what happened, why the run ended, and how to start it again."""
    memory = "; the system sends SIGKILL when memory runs out" if "SIGKILL" in what else ""
    output = "" if memory else "its own output, or that of the launcher, says why; "
    return RunError(
        f"{what}\n"
        f"why: each step needs all {world.size} processes of the run, so the others ended too{memory}\n"
        f"fix: {output}{f'start the run again {how}'.strip()}"
    )


def _lost(world: World, error: BaseException) -> list[Ended]:
    """Return the processes of this machine that had ended when `error` arose, where that may have caused it."""
    others = [process for process in world.processes if process.rank != world.rank]
    if isinstance(error, ImmediateStop):  # torchrun stops the processes that are left
        stopped = {128 + number for number in CAUGHT}
        return [end for end in ended(others) if end.status not in stopped]
    if not others or not _is_connection_error(error):
        return []
    deadline = time.monotonic() + GRACE
    while not (found := ended(others)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def _fate(lost: Sequence[Ended]) -> str:
    """Return a text that says how processes ended: those that were killed, since the others ended because of these."""
    return " and ".join(map(str, [end for end in lost if end.signal] or lost))


def _elsewhere(world: World, error: BaseException) -> str:
    """Return a text that names the processes of other machines where the connection to one broke, else ""."""
    host = world.processes[world.rank].host
    names = [str(process) for process in world.processes if process.host != host]
    if not names or not _is_connection_error(error):
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"one of these is gone or cannot be reached: {', '.join(names[:SHOWN])}{more}"


def _is_connection_error(error: BaseException) -> bool:
    """Return whether a collective operation failed, also one that a plugin called."""
    return is_connection_error(error) or is_connection_error(error.__cause__)
