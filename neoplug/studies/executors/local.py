"""The local executor: worker processes on this machine, each of which stays alive and runs one job after another.

A worker reads ids of jobs from its stdin, a line each, and writes a line to its stdout when it is ready for one: at its
start, and when the job is done. It ends when its stdin is closed, so it never outlives the study. A job whose process
dies is lost; the study may hand it out again.
"""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from neoplug.environment.info import hardware
from neoplug.errors import Interrupted, RunError, redacted
from neoplug.studies.executors.base import Ended, Memory

READY = "ready"
LAST = 2_000  # bytes of a log in which the reason of an end is sought


@dataclass(eq=False)
class _Worker:
    """A worker process.

    device  index among the devices of the executor
    ready   it has said that it waits for a job
    job     the job that it works on
    kills   how many processes the system had ended for lack of memory when the job began
    """

    process: "subprocess.Popen[str]"
    reader: threading.Thread = field(init=False)
    device: int
    log: Path
    ready: bool = False
    job: str | None = None
    kills: int = 0

    def end(self) -> None:
        """End the process, if it is alive, and close its pipes."""
        self.process.kill()
        self.process.wait()
        self.reader.join()
        assert self.process.stdin
        with suppress(BrokenPipeError):  # a job that it did not read
            self.process.stdin.close()


@dataclass(eq=False)
class Local:
    """Worker processes on this machine.

    command  starts a worker
    logs     folder for what workers print
    workers  processes, which are spread over the devices; None: one on each
    memory   bytes that the run of a job needs; jobs start together only where their sum fits into the device
    """

    command: Sequence[str]
    logs: Path
    workers: int | None = None
    memory: Memory = lambda job: 0
    devices: Sequence["Device"] = field(default_factory=lambda: devices())
    detached = False

    def __post_init__(self) -> None:
        self._most = self.workers or len(self.devices)
        self._left: list[str] = []
        self._workers: list[_Worker] = []
        self._events: queue.Queue[tuple[_Worker, str]] = queue.Queue()
        self._ended: list[Ended] = []
        self._stopping = False

    @property
    def capacity(self) -> float:
        """Twice as many jobs as workers: one of several that wait may fit where the first does not."""
        return 2 * self._most

    def submit(self, jobs: Sequence[str]) -> None:
        """Take jobs on."""
        self._left += jobs
        while len(self._workers) < min(self._most, len(self.running()) + len(self._left)):
            self._start(min(range(len(self.devices)), key=self._load))
        self._hand_out()

    def wait(self, seconds: float) -> list[Ended]:
        """Return the jobs that ended; waits at most `seconds` for the first."""
        with suppress(queue.Empty):
            self._handle(*self._events.get(timeout=seconds))
            while True:
                self._handle(*self._events.get_nowait())
        ended, self._ended = self._ended, []
        return ended

    def running(self) -> list[str]:
        """Return the jobs that workers work on."""
        return [worker.job for worker in self._workers if worker.job]

    def stop(self) -> None:
        """Ask runs to save a checkpoint and end; wait for that."""
        self._stopping = True
        self._left = []
        for worker in self._workers:
            worker.process.send_signal(signal.SIGTERM)
        for worker in self._workers:
            worker.process.wait()

    def close(self) -> None:
        """End all workers at once."""
        self._stopping = True
        for worker in self._workers:
            worker.end()
        self._workers = []

    def _start(self, device: int) -> None:
        number = len(list(self.logs.glob("worker-*.log"))) + 1
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"worker-{number}.log"
        environment = os.environ | self.devices[device].environment
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # plugins are found as in this process
        environment.setdefault("GOMP_SPINCOUNT", "0")
        if self._most > 1 and not self.devices[device].environment:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, hardware()["cores"] // self._most)))
        with log.open("ab") as file:
            process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True, bufsize=1,
                env=environment, start_new_session=True,  # a terminal's SIGINT reaches the study, which stops workers
            )  # fmt: skip
        worker = _Worker(process, device, log)
        self._workers.append(worker)
        worker.reader = threading.Thread(target=self._read, args=(worker,), daemon=True)
        worker.reader.start()

    def _load(self, device: int) -> int:
        """Return how many workers a device has."""
        return sum(worker.device == device for worker in self._workers)

    def _read(self, worker: _Worker) -> None:
        """Put what a worker says into the queue of events; an empty text is its end."""
        assert worker.process.stdout
        with worker.process.stdout as lines:
            for line in lines:
                self._events.put((worker, line.strip()))
        worker.process.wait()
        self._events.put((worker, ""))

    def _handle(self, worker: _Worker, text: str) -> None:
        if self._stopping:
            return
        job, worker.job = worker.job, None
        if text == READY:
            worker.ready = True
            if job:
                self._ended.append(Ended(job))
        else:
            self._workers.remove(worker)
            worker.end()
            if job is None and not worker.ready:
                raise RunError(f"a worker cannot be started: {self._reason(worker)}\nfix: {worker.log} says why")
            if job:
                out_of_memory = worker.process.returncode == -signal.SIGKILL and _memory_kills() > worker.kills
                self._ended.append(Ended(job, self._reason(worker), out_of_memory))
            self._start(worker.device)
        self._hand_out()

    def _hand_out(self) -> None:
        """Give each worker that waits a job for which its device has room."""
        for worker in self._workers:
            if self._stopping or not worker.ready or worker.job or not (job := self._fitting(worker.device)):
                continue
            self._left.remove(job)
            worker.job, worker.kills = job, _memory_kills()
            assert worker.process.stdin
            with suppress(BrokenPipeError):  # it died: the event follows
                worker.process.stdin.write(f"{job}\n")

    def _fitting(self, device: int) -> str | None:
        """Return the first job for which there is room; the first of all where the device is idle."""
        others = [worker.job for worker in self._workers if worker.job and worker.device == device]
        if not others:
            return next(iter(self._left), None)
        room = self.devices[device].memory_bytes - sum(map(self.memory, others))
        return next((job for job in self._left if self.memory(job) <= room), None)

    def _reason(self, worker: _Worker) -> str:
        """Return how a process ended, and the last line that it printed."""
        status = worker.process.returncode
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        lines = worker.log.read_bytes()[-LAST:].decode(errors="replace").splitlines() if worker.log.exists() else []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"its process ended {how}" + (f": {redacted(last)}" if last and status >= 0 else "")


@dataclass(frozen=True)
class Device:
    """A device for runs: its memory, and the variables of the environment that choose it."""

    memory_bytes: int
    environment: Mapping[str, str] = field(default_factory=dict)


def devices() -> list[Device]:
    """Return the GPUs of this machine that may be used; without one, its CPU."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    gpus = [
        Device(int(torch.cuda.get_device_properties(number).total_memory), {"CUDA_VISIBLE_DEVICES": name})
        for number, name in zip(range(torch.cuda.device_count()), names, strict=False)
    ]
    return gpus or [Device(hardware()["memory_bytes"] or sys.maxsize)]


def serve(perform: Callable[[str], None]) -> None:
    """Be a worker: perform the jobs whose ids arrive on stdin, until it is closed.

    What the process prints goes to stderr. A signal ends it as it ends a run, after a checkpoint.
    """
    sys.stdout.flush()
    reports = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    jobs: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_receive, args=(sys.stdin, jobs), daemon=True).start()
    reports.write(f"{READY}\n")
    while True:
        try:
            perform(jobs.get())
        except Interrupted as error:
            sys.exit(error.exit_code)
        reports.write(f"{READY}\n")


def _receive(source: IO[str], jobs: "queue.Queue[str]") -> None:
    """Queue the lines of `source`; end the process when it is closed, also in the middle of a job."""
    for line in source:
        jobs.put(line.strip())
    os._exit(1)


def _memory_kills() -> int:
    """Return how many processes the system has ended for lack of memory; 0 where it does not say."""
    with suppress(OSError):
        for line in Path("/proc/vmstat").read_text(encoding="utf-8").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
