"""The command line as a whole: commands that start without torch, errors without tracebacks, exit codes."""

import io
import json
import subprocess
import sys

import pytest

from neoplug.cli import main
from neoplug.cli import run as run_command
from neoplug.errors import EXCERPT, RunError

PROBE = """
import json, sys
from neoplug.cli import main
sys.argv = ["neoplug", *json.loads(sys.argv[1])]
try:
    main()
except SystemExit as end:
    code = end.code or 0
heavy = sorted({"torch", "numpy", "transformers", "peft", "datasets", "rich.console"} & set(sys.modules))
print(json.dumps({"code": code, "heavy": heavy, "modules": len(sys.modules)}), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--help"], 0), (["recipes"], 0), (["plugins"], 0), (["plugins", "--matrix"], 0), (["run", "broken.yaml"], 2)],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_quick_commands_import_little_and_no_torch(tmp_path, arguments, code):
    """Imports take most of their time, and their number is the same on every machine."""
    (tmp_path / "broken.yaml").write_text("train: {max_steps: 3\nseed: 0\n")
    command = [sys.executable, "-c", PROBE, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    report = json.loads(done.stderr.splitlines()[-1])
    assert report["heavy"] == []
    assert report["code"] == code
    assert report["modules"] < 450  # torch alone imports over a thousand
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.yaml"]


def test_help_names_every_command(neoplug):
    answer = neoplug("--help")
    assert answer.code == 0
    for command in ("run", "plan", "preview", "plugins", "recipes", "schema", "export", "doctor"):
        assert f"\n  {command} " in answer.out
    assert not [line for line in answer.out.splitlines()[1:] if line.endswith("...")]  # truncated
    assert "completion" not in answer.out


@pytest.mark.parametrize("command", [[], *([name] for name in ("run", "preview", "plugins", "recipes"))])
def test_help_in_a_pipe_is_never_wrapped(neoplug, monkeypatch, command):
    """Every help text is one line, whatever the width of the terminal."""
    monkeypatch.setenv("COLUMNS", "40")
    lines = neoplug(*command, "--help").out.splitlines()
    documented = [line for line in lines if line.startswith("  ")]
    assert not [line for line in documented if line.startswith(" " * 8)]  # how a wrapped line would continue
    assert not command or all(line[-1] in ".]" for line in documented), documented


def test_a_long_line_in_an_error_message_is_truncated_around_its_mark_in_a_pipe_too(neoplug, tmp_path):
    long = "x" * 3000
    (tmp_path / "long.yaml").write_text(f"student: {{model: {long}, sead: 1}}\n")
    answer = neoplug("plan", tmp_path / "long.yaml")
    line, carets = answer.err.split("unknown key `sead`")[1].splitlines()[1:3]
    assert len(line) <= EXCERPT
    assert line[carets.index("^") : carets.rindex("^") + 1] == "sead"
    answer = neoplug("plan", tmp_path / "long.yaml", f"train.max_steps={long}")
    (line,) = [line for line in answer.err.splitlines() if '`max_steps` is "xxx' in line]
    assert line.endswith("but must be a whole number")
    assert len(line) < 1_100


def test_text_that_stdout_cannot_encode_is_escaped(recipe, monkeypatch):
    """`preview` marks tokens with guillemets, which ASCII does not have."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["neoplug", "preview", str(recipe)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    sys.stdout.flush()
    assert b"\\xab" in written.getvalue()


def test_version(neoplug):
    from importlib.metadata import version

    assert neoplug("--version").out == f"neoplug {version('neoplug')}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["bogus"],
        ["run"],
        ["plan", "r", "--bogus"],
        ["preview", "r", "--rows", "x"],
        ["export", "a", "b", "--dtype", "x"],
    ],
)
def test_an_invalid_command_line_exits_2(neoplug, arguments):
    answer = neoplug(*arguments)
    assert answer.code == 2
    assert answer.out == ""
    assert "Error" in answer.err
    assert "Traceback" not in answer.err


@pytest.mark.parametrize("command", ["run", "plan", "preview"])
def test_an_invalid_recipe_exits_2_with_all_problems_and_no_directory(neoplug, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.yaml").write_text("sed: 1\ntrain: {max_steps: true}\nadapter: {lorra: {}}\n")
    answer = neoplug(command, "wrong.yaml")
    assert answer.code == 2
    assert "wrong.yaml:1:1" in answer.err
    assert "wrong.yaml:2:" in answer.err
    assert "lora" in answer.err
    assert "Traceback" not in answer.err
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.yaml"]


@pytest.mark.parametrize("rank", ["0", "1"])
def test_other_processes_wait_while_the_first_reports_the_problems(neoplug, tmp_path, monkeypatch, rank):
    (tmp_path / "wrong.yaml").write_text("seed: few\n")
    monkeypatch.setenv("LOCAL_RANK", rank)
    waits = []
    monkeypatch.setattr("neoplug.cli.time.sleep", waits.append)
    answer = neoplug("run", tmp_path / "wrong.yaml")
    assert (answer.code, len(waits)) == (2, int(rank))
    assert "`seed`" in answer.err  # no launcher ended this process, so it reports the problem itself


def test_a_missing_recipe_exits_2(neoplug):
    answer = neoplug("plan", "nowhere.yaml")
    assert answer.code == 2
    assert "nowhere.yaml" in answer.err


@pytest.mark.parametrize(("error", "code"), [(RunError("the loss is NaN in step 3"), 1), (KeyboardInterrupt(), 130)])
def test_a_run_that_fails_ends_with_its_code(neoplug, recipe, monkeypatch, error, code):
    def fail(*_):
        raise error

    monkeypatch.setattr("neoplug.runs.execute.execute", fail)
    answer = neoplug("run", recipe, "--output", recipe.parent / "out")
    assert answer.code == code
    assert "Traceback" not in answer.err
    assert code == 130 or "the loss is NaN in step 3" in answer.err


def test_resume_needs_the_run(neoplug, recipe):
    answer = neoplug("run", recipe, "--resume")
    assert answer.code == 2
    assert "--output" in answer.err


def test_the_modules_are_not_shadowed_by_their_functions():
    assert callable(run_command.run)
