"""`run`: the arguments that it passes on, and the printed result."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from neoplug import recipe as recipes
from neoplug.cli import show
from neoplug.cli.run import why_unmerged
from neoplug.registry.measures import MEASURES
from neoplug.runs.directory import RunDir

RESULT = {
    "status": "completed",
    "before": {
        "forward_kl": 11.5,
        "perplexity": 123456.7,
        "top1_agreement": 0.01,
        "probes": {"calibration": {"ece": 0.2}},
    },
    "after": {
        "forward_kl": 2.5,
        "perplexity": 20.25,
        "top1_agreement": 0.6,
        "probes": {"calibration": {"ece": 0.1, "bins": [1, 2]}},
    },
    "teacher": {"perplexity": 10.0},
    "sample": {"prompt": "The\nsky", "before": " the the", "after": " is blue"},
    "steps": 5,
    "tokens": 5000,
    "answer_tokens": 3000,
    "seconds": 61.2,
    "peak_memory_bytes": 2_000_000_000,
    "trainable_parameters": 10,
    "total_parameters": 1000,
}


@pytest.fixture
def finished(tmp_path):
    """Return a run directory with a name longer than a line of a terminal."""
    run = RunDir.create(tmp_path / ("long" * 40), {"seed": 0}, {"format": 1})
    run.adapter.mkdir()
    (run.adapter / "adapter_model.safetensors").write_bytes(b"x" * 1500)
    return run


def test_a_result_is_a_table_of_before_after_and_teacher(capsys, finished):
    show.print_result(RESULT, finished.path)
    lines = capsys.readouterr().out.splitlines()
    table = {line[:16].strip(): line[16:].split() for line in lines if line}
    assert table["forward KL"] == ["11.5000", "2.5000"]
    assert table["perplexity"] == ["123,456.7", "20.2500", "10.0000"]
    assert table["top-1 agreement"] == ["0.0100", "0.6000"]
    assert table["calibration.ece"] == ["0.2000", "0.1000"]
    assert not any("reverse" in line or "bins" in line for line in lines)
    header = next(line for line in lines if "before" in line and "teacher" in line)
    perplexity = next(line for line in lines if line.startswith("perplexity"))
    assert header.index("after") + len("after") == perplexity.index("20.2500") + len("20.2500")


def test_a_result_has_the_sample_the_files_and_the_next_command(capsys, finished):
    show.print_result(RESULT, finished.path)
    printed = capsys.readouterr().out
    for line in ("  prompt:  The sky", "  before:  the the", "  after:   is blue"):
        assert f"{line}\n" in printed
    assert "5 steps, 5,000 tokens (3,000 scored), 1:01, peak memory 2.0 GB, 10 of 1,000 parameters trained" in printed
    assert f"written to {finished.path}\n" in printed
    assert "  adapter/       1.5 kB\n" in printed
    assert f"  neoplug export {finished.path} {finished.path}-model\n" in printed
    assert "\x1b" not in printed


def test_export_is_not_suggested_for_an_adapter_that_cannot_be_merged(capsys, finished):
    show.print_result(RESULT, finished.path, "it depends on the token")
    printed = capsys.readouterr().out
    assert "neoplug export" not in printed
    assert printed.endswith("load adapter/ with peft on its base; it cannot be merged: it depends on the token\n")


@pytest.mark.parametrize(("adapter", "merges"), [("lora", True), ("full", True), ("lily", False), ("p_tuning", False)])
def test_the_traits_of_an_adapter_state_whether_it_can_be_merged(recipe, adapter, merges):
    checked = recipes.load(recipe, [f"adapter={{{adapter}: {{}}}}"])
    assert bool(why_unmerged(checked.plugins)) != merges


def test_a_continuation_cannot_control_the_terminal(capsys, finished):
    show.print_result({"sample": {"prompt": "a\x1b[31mb", "before": "c\x07", "after": "\x9bd"}}, finished.path)
    printed = capsys.readouterr().out
    assert "a\\x1b[31mb" in printed
    assert not set("\x1b\x07\x9b") & set(printed)


def test_a_result_without_metrics_or_sample_is_printed(capsys, finished):
    show.print_result({"status": "completed", "sample": {"prompt": "x", "before": None}, "after": {}}, finished.path)
    assert "None" not in capsys.readouterr().out


def test_run_passes_recipe_folder_and_progress_on(neoplug, recipe, tmp_path, monkeypatch):
    arguments = {}

    def execute(checked, output, resume, progress):
        arguments.update(steps=checked.recipe.train.max_steps, output=output, resume=resume)
        RunDir.create(output, checked.resolved(), {"format": 1})
        progress.phase("evaluating the student")
        progress.started(2, 0)
        progress.step({"step": 2, "loss": 1.0, "losses": {"forward_kl": 2.0}, "tokens_per_second": 10.0})
        return RESULT

    monkeypatch.setattr("neoplug.runs.execute.execute", execute)
    output = tmp_path / "out"
    answer = neoplug("run", recipe, "train.max_steps=2", "train.num_train_epochs=null", "--output", output, "--resume")
    assert (answer.code, answer.err) == (0, "")
    assert arguments == {"steps": 2, "output": output, "resume": True}
    assert "evaluating the student\n" in answer.out
    assert "step 2/2  loss 1.0000  forward_kl 2.0000  10 tokens/s" in answer.out
    assert "forward KL" in answer.out


SHOW = """
import sys
from pathlib import Path
from neoplug.cli import show, watch
with watch.progress(1) as progress:
    progress.started(2, 0)
    progress.step({"step": 1, "loss": 1.0, "losses": {"forward_kl": 2.0}, "tokens_per_second": 10.0})
show.print_result({"before": {"forward_kl": 1.0}, "after": {"forward_kl": 0.5}}, Path(sys.argv[1]))
"""


def test_a_terminal_shows_a_progress_bar(finished):
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    environment.pop("NO_COLOR", None)
    command = [sys.executable, "-c", SHOW, str(finished.path)]
    with subprocess.Popen(command, stdout=slave, stderr=subprocess.PIPE, env=environment) as process:
        os.close(slave)
        shown = b""
        while chunk := read(master):
            shown += chunk
        assert process.wait() == 0, process.stderr.read()
    os.close(master)
    assert b"\x1b[" in shown
    assert "━".encode() in shown
    assert b"1/2" in shown
    assert b"forward KL" in shown


def read(terminal):
    """Return the bytes written to the terminal; none when the other end is closed."""
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux reports a closed end like this
        return b""


@pytest.mark.slow
def test_a_real_run(neoplug, recipe, tmp_path):
    output = tmp_path / "out"
    answer = neoplug("run", recipe, "--output", output)
    assert answer.code == 0, answer.err
    assert "step 5/5" in answer.out
    for measure in MEASURES.values():
        assert (f"\n{measure.title} " in answer.out) == (measure.name != "kd_ce_cosine")
    assert f"neoplug export {output} {output}-model" in answer.out
    assert Path(output, "adapter", "adapter_model.safetensors").is_file()
    exported = neoplug("export", output, tmp_path / "model")
    assert exported.code == 0, exported.err
    assert Path(tmp_path, "model", "model.safetensors").is_file()
    again = neoplug("run", recipe, "--output", output)
    assert again.code == 2
    assert "--resume" in again.err
