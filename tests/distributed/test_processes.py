"""How a process of this machine ended, compared with the status that its parent gets."""

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from neoplug.distributed.processes import Ended, Process, ended, is_connection_error, is_timeout

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def start(code):
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    return child, Process(1, socket.gethostname(), child.pid)


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL"),
        ("import os; os.kill(os.getpid(), 11)", "was killed by SIGSEGV"),
        ("raise SystemExit(3)", "ended with exit status 3"),
    ],
)
def test_how_a_process_ended_is_known_until_its_parent_waits_for_it(code, how):
    child, process = start(code)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    (end,) = ended([process])
    assert str(end) == f"rank 1 (process {child.pid} on {socket.gethostname()}) {how}"
    assert end.status == child.wait()
    assert ended([process]) == [Ended(process, None)]
    child.stdout.close()


def test_living_processes_and_those_of_other_machines_have_not_ended():
    child, process = start("import signal; signal.pause()")
    assert ended([Process.own(0), process]) == []
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert ended([replace(process, host="another")]) == []


def test_other_errors_are_no_errors_of_a_connection():
    assert not is_connection_error(None)
    assert not is_connection_error(RuntimeError("shapes differ"))


def test_a_timeout_is_told_from_a_closed_connection():
    assert is_timeout(RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 5000ms for recv"))
    assert not is_timeout(RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer"))
    assert not is_timeout(TimeoutError("timed out"))
