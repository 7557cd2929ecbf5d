"""The local executor: processes that stay alive, and whose deaths cost one job each."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import pytest

from neoplug.errors import RunError
from neoplug.studies.executors.local import Device, Local

WORKER = """
import os, signal, sys, time
from pathlib import Path
from neoplug.studies.executors.local import serve

folder = Path(sys.argv[1])

def perform(job):
    (folder / job).write_text(f"{os.getpid()} {os.environ.get('OMP_NUM_THREADS')} {os.environ.get('GPU')}")
    print("said", job)
    if job.startswith("killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    if job.startswith("raises"):
        raise OSError("no such luck")
    while job.startswith("waits") and not (folder / "go").exists():
        time.sleep(0.01)
    (folder / f"{job}-done").touch()

serve(perform)
"""


@pytest.fixture
def local(tmp_path):
    """Return a function that makes an executor of processes that run WORKER."""
    made = []
    (tmp_path / "worker.py").write_text(dedent(WORKER))

    def make(body=None, **options):
        command = [sys.executable, "-c", body] if body else [sys.executable, str(tmp_path / "worker.py"), str(tmp_path)]
        made.append(Local(command, tmp_path / "logs", **{"devices": [Device(100)], **options}))
        return made[-1]

    yield make
    for executor in made:
        executor.close()


def ended(executor, count):
    found = []
    while len(found) < count:
        found += executor.wait(1.0)
    return found


def wait_for(condition):
    while not condition():
        time.sleep(0.01)


def is_alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"


def test_one_process_runs_many_jobs(local, tmp_path):
    executor = local()
    executor.submit(["a", "b", "c"])
    assert [end.job for end in ended(executor, 3)] == ["a", "b", "c"]
    executor.submit(["d"])
    ended(executor, 1)
    assert len({(tmp_path / job).read_text().split()[0] for job in "abcd"}) == 1
    assert "said a" in (tmp_path / "logs" / "worker-1.log").read_text()


def test_a_death_costs_one_job(local):
    executor = local()
    executor.submit(["a", "killed", "raises", "b"])
    found = {end.job: end for end in ended(executor, 4)}
    assert found["a"].reason == found["b"].reason == ""
    assert found["killed"].reason == "its process ended by SIGKILL"
    assert not found["killed"].out_of_memory
    assert found["raises"].reason == "its process ended with status 1: OSError: no such luck"


def test_the_system_ends_a_process_for_lack_of_memory(local, monkeypatch):
    kills = iter([0, 1])
    monkeypatch.setattr("neoplug.studies.executors.local._memory_kills", lambda: next(kills))
    executor = local()
    executor.submit(["killed"])
    assert ended(executor, 1)[0].out_of_memory


def test_workers_of_a_device_share_its_cores_and_memory(local, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    needs = {"waits-1": 60, "waits-2": 60, "waits-3": 40}
    executor = local(workers=3, memory=needs.__getitem__)
    executor.submit(list(needs))
    while set(executor.running()) != {"waits-1", "waits-3"}:
        assert executor.wait(0.1) == []
    (tmp_path / "go").touch()
    assert {end.job for end in ended(executor, 3)} == set(needs)
    threads = str(max(1, len(os.sched_getaffinity(0)) // 3))
    assert {(tmp_path / job).read_text().split()[1] for job in needs} == {threads}


def test_a_job_that_fits_nowhere_runs_alone(local):
    executor = local(workers=2, memory=lambda job: 1000)
    executor.submit(["a", "b"])
    assert {end.job for end in ended(executor, 2)} == {"a", "b"}


def test_each_device_has_its_own_workers(local, tmp_path):
    executor = local(devices=[Device(100, {"GPU": "0"}), Device(100, {"GPU": "1"})])
    executor.submit(["waits-1", "waits-2"])
    wait_for(lambda: executor.wait(0.05) == [] and len(executor.running()) == 2)
    (tmp_path / "go").touch()
    ended(executor, 2)
    assert {(tmp_path / job).read_text().split()[2] for job in ("waits-1", "waits-2")} == {"0", "1"}


def test_stopping_ends_running_jobs_and_starts_no_other(local, tmp_path):
    executor = local()
    executor.submit(["waits", "b"])
    wait_for(lambda: executor.wait(0.05) == [] and (tmp_path / "waits").exists())
    executor.stop()
    assert executor.wait(0.1) == []
    assert not (tmp_path / "waits-done").exists()
    assert not (tmp_path / "b").exists()


def test_a_worker_that_cannot_start_is_an_error(local):
    executor = local("raise SystemExit('no torch here')")
    executor.submit(["a"])
    with pytest.raises(RunError, match=r"cannot be started: its .* status 1: no torch here\nfix: .*log"):
        ended(executor, 1)


STUDY = """
import sys
from pathlib import Path
from neoplug.studies.executors.local import Device, Local
executor = Local([sys.executable, sys.argv[1], sys.argv[2]], Path(sys.argv[2], "logs"), devices=[Device(100)])
executor.submit(["waits"])
while True:
    executor.wait(1.0)
"""


def test_workers_end_with_the_study(local, tmp_path):
    local()
    study = subprocess.Popen([sys.executable, "-c", STUDY, tmp_path / "worker.py", tmp_path])
    wait_for(lambda: (tmp_path / "waits").exists() and (tmp_path / "waits").read_text())
    worker = int((tmp_path / "waits").read_text().split()[0])
    assert is_alive(worker)
    study.send_signal(signal.SIGKILL)
    study.wait()
    wait_for(lambda: not is_alive(worker))
