"""Code that is imported can neither end the process, read its arguments or stdin, nor print as if it were neoplug."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from neoplug.errors import RecipeError
from neoplug.registry import find
from neoplug.registry.confinement import EndedProcess, confined, exits_refused
from tests.commands import Command

PLUGIN = """
{code}
from dataclasses import dataclass
from neoplug import hookimpl

@dataclass(eq=False)
class Probe:
    @hookimpl
    def on_evaluate(self):
        return {{}}
"""
ENDINGS = [
    "import sys; sys.exit(0)",
    "raise SystemExit",
    "import os; os._exit(0)",
    "import os; os.abort()",
    "import os; os.execv('/bin/true', ['true'])",
    "import os; os.execlp('true', 'true')",
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "import os, signal; os.killpg(0, signal.SIGKILL)",
    "import signal; signal.raise_signal(signal.SIGTERM)",
    "import posix; posix._exit(0)",
    "from os import _exit; _exit(0)",
]


@pytest.fixture
def written(tmp_path):
    """Return a function that writes a plugin whose import runs `code`."""

    def written(code):
        file = tmp_path / "probe.py"
        file.write_text(PLUGIN.format(code=dedent(code)))
        return file

    return written


@pytest.mark.parametrize("code", ENDINGS)
def test_an_import_that_ends_the_process_is_an_error_of_the_plugin(written, code):
    """In a process of its own, since the process would end."""
    answer = Command("plugins", f"{written(code)}:Probe").start().end()
    assert answer.exitcode == 2
    assert answer.out == ""
    assert "the plugin `Probe` of" in answer.err
    assert "EndedProcess: it calls" in answer.err


def test_an_import_does_not_move_the_process(written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    find(f"{written('import os; os.chdir(os.sep)')}:Probe", tmp_path).load()
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize("code", ENDINGS[::3])  # the same confinement as of plugins, and a run takes longer to begin
def test_a_module_that_ends_the_process_does_not_look_like_a_run_that_went_well(tmp_path, code, monkeypatch):
    (tmp_path / "exitmod.py").write_text(code)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "student: {model: hub/none}\ndata: {source: python:exitmod}\nadapter: {lora: {}}\nloss: {cross_entropy: {}}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    words = ("run", recipe, "--trust", "python:exitmod", "--output", tmp_path / "out")
    answer = Command(*words).start().end()
    assert answer.exitcode == 2
    assert "the module exitmod cannot be imported: EndedProcess" in answer.err
    assert not (tmp_path / "out").exists()


def test_functions_that_end_the_process_work_again_after_it(written):
    before = os._exit, os.abort, os.kill, sys.argv, sys.stdin, sys.stdout, sys.stderr
    file = written("from os import _exit, kill")
    plugin = find(f"{file}:Probe", file.parent).load()
    assert (os._exit, os.abort, os.kill, sys.argv, sys.stdin, sys.stdout, sys.stderr) == before
    kept = sys.modules[plugin.__module__]
    kept.kill(os.getpid(), signal.SIGCONT)
    if (child := os.fork()) == 0:
        kept._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_processes_that_an_import_starts_may_end_and_be_ended(written):
    code = """
    import os, subprocess, sys
    child = os.fork()
    if child == 0:
        os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    os.kill(other.pid, 0)
    os.kill(other.pid, 15)
    assert other.wait() == -15
    """
    command = [sys.executable, "-m", "neoplug", "plugins", f"{written(code)}:Probe"]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr


def test_an_import_reads_no_arguments_and_no_stdin(written):
    code = """
    import os, sys
    assert "--json" not in sys.argv + sys.orig_argv, sys.argv
    assert sys.stdin.read() == "" and os.read(0, 100) == b""
    """
    command = [sys.executable, "-m", "neoplug", "plugins", "--json", f"{written(code)}:Probe"]
    answer = subprocess.run(command, input="a secret", capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr


def test_what_an_import_prints_is_shown_escaped_on_stderr_and_json_stays_pure(written):
    code = r"""
    import os, subprocess, sys
    print("printed\x1b[31m \u202e")
    print("to stderr", file=sys.stderr)
    print("before", file=sys.__stdout__)
    os.write(1, b"by number\n")
    subprocess.run(["echo", "by another process"])
    """
    command = [sys.executable, "-m", "neoplug", "plugins", "--json", f"{written(code)}:Probe"]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert json.loads(answer.stdout)["name"] == "Probe"
    assert sorted(answer.stderr.splitlines()) == [
        "Probe printed: before",
        "Probe printed: by another process",
        "Probe printed: by number",
        "Probe printed: printed\\x1b[31m \\u202e",
        "Probe printed: to stderr",
    ]


def test_what_an_import_prints_has_a_limit(written, capsys):
    file = written("for n in range(1000): print(n, chr(120) * 10_000)")
    find(f"{file}:Probe", file.parent).load()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 21
    assert max(map(len, lines)) < 600
    assert lines[-1] == "Probe printed 980 more lines"


def test_a_stream_that_an_import_keeps_works_afterwards(written):
    """As the handlers of logging, which many libraries create when they are imported."""
    code = """
    import logging, sys
    logging.getLogger("kept").addHandler(logging.StreamHandler())
    logging.getLogger("kept").error("during")
    """
    program = f"""
    from pathlib import Path
    from neoplug.registry import find
    import logging
    find({f"{written(code)}:Probe"!r}, Path()).load()
    logging.getLogger("kept").error("after")
    """
    answer = subprocess.run([sys.executable, "-c", dedent(program)], capture_output=True, text=True)
    assert answer.returncode == 0
    assert answer.stderr.splitlines() == ["Probe printed: during", "after"]


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
def test_closed_streams_do_no_harm(written, closed):
    command = f"{sys.executable} -m neoplug plugins {written('print(1)')}:Probe {closed}"
    answer = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr


def test_the_users_interrupt_passes():
    with pytest.raises(KeyboardInterrupt), confined("x"):
        raise KeyboardInterrupt


def _exit_in(name):
    with confined(name):
        print("two")
        sys.exit(1)


def test_confinement_inside_confinement(capsys):
    with confined("outer"):
        print("one")
        with pytest.raises(EndedProcess):
            _exit_in("inner")
        with pytest.raises(EndedProcess):
            os._exit(1)
    assert capsys.readouterr().err == "outer printed: one\nouter printed: inner printed: two\n"


def test_the_error_of_an_import_names_its_line(written):
    file = written("import sys; sys.exit('no')")
    with pytest.raises(RecipeError, match=r"EndedProcess: it calls sys.exit\('no'\) \(probe.py, line 2\)"):
        find(f"{file}:Probe", file.parent).load()


LOSS = """
import os
from dataclasses import dataclass
from neoplug import hookimpl

@dataclass(eq=False)
class Loss:
    @hookimpl
    def token_loss(self, student, labels):
        {code}
"""


@pytest.mark.parametrize("code", ["raise SystemExit", "os._exit(0)", "os.execv('/bin/true', ['true'])"])
def test_a_hook_that_ends_the_process_does_not_look_like_a_command_that_went_well(tmp_path, code):
    file = tmp_path / "loss.py"
    file.write_text(LOSS.format(code=code))
    answer = Command("check", f"{file}:Loss").start().end()
    assert answer.exitcode == 1
    assert f"{file}:10" in answer.out + answer.err


def test_processes_of_a_command_may_end():
    with exits_refused():
        if (child := os.fork()) == 0:
            os._exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        with pytest.raises(EndedProcess):
            os._exit(0)


def test_a_signal_that_code_sends_to_its_command_is_delivered():
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    with exits_refused():
        os.kill(os.getpid(), signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]
