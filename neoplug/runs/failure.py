"""The result of a run that failed or was interrupted: what it says, and which process writes it."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from neoplug.distributed.notices import LOST, PAUSE, TIMED_OUT, faults
from neoplug.distributed.processes import Ended, Process, ended, is_connection_error, is_timeout
from neoplug.distributed.world import World
from neoplug.environment.determinism import without_algorithm
from neoplug.errors import ImmediateStop, Interrupted, NeoplugError, PluginError, RunError, redacted
from neoplug.runs.directory import RunDir
from neoplug.runs.result import RunResult, RunState, Status
from neoplug.runs.signals import CAUGHT, Stop
from neoplug.training import checkpoint

logger = logging.getLogger(__name__)

# Seconds in which a process whose connections are closed already ends or reports why; after a timeout, all report.
GRACE = {False: 1.0, True: 5.0}
SHOWN = 8  # processes in a list


@dataclass(eq=False)
class FailureWriter:
    """Writes the result of a run that failed: in the process in which it did, or the first that is left without it."""

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
        cause = find_cause(self.world, error)
        failure = self.explained(cause.what, step, error) if cause else without_algorithm(error) or error
        if isinstance(failure, PluginError) and self.world.is_main:
            failure.log = self.directory.log
        stopped = isinstance(failure, Interrupted | ImmediateStop)
        explained = isinstance(failure, NeoplugError) or stopped
        status: Status = "interrupted" if stopped else "failed"
        reason = self.reason(failure, step)
        logger.debug("%s: %s", status, reason, exc_info=failure.__cause__ or (None if explained else failure))
        # The process in which an error arose writes it. The others write where that could not.
        first = min(process.rank for process in self.world.processes if not (cause and process.rank in cause.ranks))
        writes = self.world.rank == first if cause or stopped else True
        if writes and (self.world.size == 1 or self.written() == self.earlier):
            self.directory.write_result(RunResult(format=1, status=status, reason=reason, **state.measured()))
        return failure

    def reason(self, failure: BaseException, step: int) -> str:
        """Return what result.json says of a failure: that of one process of several names the process."""
        here = self.world.processes[self.world.rank] if self.world.size > 1 else None
        if here and isinstance(failure, PluginError):
            return redacted(f"{here}: {failure}")
        if isinstance(failure, NeoplugError | ImmediateStop):
            return redacted(str(failure))
        sentence = sentence_of(failure)
        return str(self.explained(f"{here}: {sentence}", step, failure)) if here else sentence

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
        if cause := find_cause(world, error):
            raise _explained(f"{cause.what}, before the first step", "", world) from error
        raise


@dataclass(frozen=True)
class Cause:
    """Why other processes of a run ended this one.

    what   a sentence that names them
    ranks  theirs
    """

    what: str
    ranks: Sequence[int]


def find_cause(world: World, error: BaseException) -> Cause | None:
    """Return what other processes did to end this one by `error`; None where it arose here. Report it to the others."""
    others = [process for process in world.processes if process.rank != world.rank]
    is_stop = isinstance(error, ImmediateStop | Interrupted)
    if not others or isinstance(error, Interrupted):
        return None
    if not is_stop and not _any(is_connection_error, error):
        world.notices.write(sentence_of(error))
        return None
    timed_out = _any(is_timeout, error)
    if not is_stop:
        world.notices.write(TIMED_OUT if timed_out else LOST)
    notices = world.notices.read(0 if is_stop else GRACE[timed_out])
    if found := faults(notices):
        rank = min(found)
        return Cause(f"{world.processes[rank]}: {found[rank]}", [rank])
    if lost := _lost(others, notices, is_stop):
        return Cause(" and ".join(map(str, lost)), [end.process.rank for end in lost])
    if is_stop:
        return None
    silent = [process for process in others if process.rank not in notices]
    if silent and (timed_out or TIMED_OUT in notices.values()):
        what = f"{_listed(silent)} did not take part in a step within {world.timeout} seconds (train.ddp_timeout)"
        return Cause(what, [process.rank for process in silent])
    host = world.processes[world.rank].host
    if elsewhere := [process for process in silent if process.host != host]:
        return Cause(f"one of these is gone or cannot be reached: {_listed(elsewhere)}", [])
    return None


def sentence_of(error: BaseException) -> str:
    """Return the first line of what an error says."""
    text = error.what if isinstance(error, PluginError) else str(error)
    first = text.strip().partition("\n")[0]
    return redacted(first if isinstance(error, NeoplugError) else f"{type(error).__name__}: {first}")


def _explained(what: str, how: str, world: World) -> RunError:
    """Return an error that says what happened, why the run ended, and how to start it again."""
    again = f"start the run again {how}".strip()
    why = f"each step needs all {world.size} processes of the run, so the others ended too"
    if "SIGKILL" in what:
        why += "; the system sends SIGKILL when memory runs out"
        fix = again
    elif "OutOfMemory" in what or "MemoryError" in what:
        fix = f"take smaller micro-batches (train.per_device_train_batch_size) and as many more of them; {again}"
    elif "ddp_timeout" in what:
        fix = f"if it hangs, its own output may say why; if it is slow, raise train.ddp_timeout; {again}"
    else:
        fix = f"its own output, or that of the launcher, says why; {again}"
    return RunError(f"{what}\nwhy: {why}\nfix: {fix}")


def _lost(others: Sequence[Process], notices: Mapping[int, str], is_stop: bool) -> list[Ended]:
    """Return the processes of this machine whose end may have ended the others: those that were killed, else all.

    is_stop  whether a signal ended this process, which torchrun sends to all that are left
    """
    stopped = {128 + number for number in CAUGHT} if is_stop else set()
    deadline = time.monotonic() + (0 if is_stop else GRACE[False])
    silent = [process for process in others if process.rank not in notices]
    while not (found := ended(silent)) and silent and time.monotonic() < deadline:
        time.sleep(PAUSE)
    found = [end for end in found if end.status not in stopped]
    return [end for end in found if end.signal] or found


def _listed(processes: Sequence[Process]) -> str:
    more = f" and {len(processes) - SHOWN} more" if len(processes) > SHOWN else ""
    return ", ".join(map(str, processes[:SHOWN])) + more


def _any(test: Callable[[BaseException | None], bool], error: BaseException) -> bool:
    """Return whether an error, or the one of a plugin that it stands for, is of a kind."""
    return test(error) or test(error.__cause__)
