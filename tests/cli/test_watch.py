"""Display of a run's progress."""

import io
import logging
import re

import pytest
from rich.console import Console

from neoplug.cli import watch

METRICS = {"loss": 1.5, "losses": {"cross_entropy": 1.0, "forward_kl": 2.0}, "tokens_per_second": 1234.5}


@pytest.fixture
def clock(monkeypatch):
    """Return a list whose only value is the time."""
    now = [0.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
    return now


def test_lines_are_printed_every_few_steps_and_at_the_end(capsys, clock):
    lines = watch.Lines(every=2)
    lines.started(5, 0)
    for step in range(1, 6):
        clock[0] += 10
        lines.step({"step": step, **METRICS})
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in printed[1:]] == ["2/5", "4/5", "5/5"]
    assert printed[1] == "step 2/5  loss 1.5000  cross_entropy 1.0000  forward_kl 2.0000  1,234 tokens/s  0:30 left"
    assert printed[-1].endswith("0:00 left")


def test_time_left_is_estimated_from_this_process(clock):
    remaining = watch.Clock(total=100, done=90)
    assert remaining.left(90) is None
    clock[0] = 8.0
    assert remaining.left(94) == 12.0


def test_the_bar_shows_step_losses_speed_and_time_left(clock):
    screen = io.StringIO()
    bar = watch.Bar(Console(file=screen, force_terminal=True, width=80))
    with bar.display:
        bar.phase("evaluating the student")
        bar.started(4, 1)
        clock[0] = 61.0
        bar.step({"step": 2, **METRICS})
        bar.display.refresh()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    for part in ("training", "2/4", "cross_entropy 1.0000", "forward_kl 2.0000", "1,234 tokens/s", "2:02 left"):
        assert part in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_single_loss_is_printed_once():
    assert watch.format_metrics({"loss": 1.0, "losses": {"forward_kl": 1.0}}) == ["forward_kl 1.0000"]
    assert watch.format_metrics({"loss": 0.5, "losses": {"forward_kl": 1.0}, "penalty": 0.25}) == [
        "loss 0.5000",
        "forward_kl 1.0000",
        "penalty 0.25",
    ]


def test_log_records_go_to_stderr_and_the_logger_is_restored(capsys):
    logger = logging.getLogger("neoplug")
    before = (logger.level, list(logger.handlers))
    with watch.log_to_stderr():
        logger.info("packed into 3 rows")
        logger.warning("padded batches")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "packed into 3 rows\nwarning: padded batches\n"
    assert (logger.level, list(logger.handlers)) == before


def test_other_ranks_print_nothing(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with watch.progress(1) as shown, watch.log_to_stderr():
        shown.phase("loading")
        shown.started(2, 0)
        shown.step({"step": 1, **METRICS})
        logging.getLogger("neoplug").info("a note")
    assert capsys.readouterr() == ("", "")
