"""Signals: the first makes a run save and end, a second SIGINT ends it immediately."""

import os
import re
import signal
import time

import pytest

from neoplug.errors import Interrupted
from neoplug.runs.trainer import Trainer

SIGNALS = """
@dataclass(eq=False)
class Signals:
    '''Sends this process the signals that a file names, at the first row of a step of five: "3 SIGINT SIGINT".'''

    file: str
    sent: bool = False

    @hookimpl
    def edit_batch(self, progress):
        step, *names = Path(self.file).read_text().split() if Path(self.file).exists() else ["0"]
        if not self.sent and progress == (int(step) - 1) / 4:
            self.sent = True
            for name in names:
                os.kill(os.getpid(), getattr(signal, name))
                time.sleep(0.01)
"""
SLOW = """
@dataclass(eq=False)
class Slow:
    '''Takes its time while a file is there.'''

    file: str

    @hookimpl
    def edit_batch(self):
        while Path(self.file).exists():
            time.sleep(0.05)
"""


@pytest.fixture
def signalled(lab):
    """Return a function that runs the recipe with a signal at a step."""
    lab.plugin("signals", SIGNALS)
    file = lab.folder / "signals.txt"
    recipe = lab.recipe(
        treatments={"./signals.py:Signals": {"file": str(file)}}, train={"max_steps": 5, "save_steps": 4}
    )

    def run(output, order="", *, resume=False):
        file.write_text(order or "0")
        return lab.run(output, recipe, resume=resume)

    return run


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), pytest.param("SIGTERM", 143, marks=pytest.mark.slow)])
def test_a_signal_saves_first(signalled, lab, name, code):
    undisturbed = signalled("undisturbed")
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted, match="--resume") as caught:
        signalled("run", f"3 {name}")
    assert caught.value.exit_code == code
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    run = lab.at("run")
    assert run.steps_saved == [3]
    assert run.facts == undisturbed.facts[:3]
    assert run.result["status"] == "interrupted"
    signalled("run", resume=True)
    assert run.facts == undisturbed.facts
    assert run.adapter_bytes == undisturbed.adapter_bytes
    assert run.result["status"] == "completed"
    assert "reason" not in run.result


@pytest.mark.slow
def test_a_second_sigint_ends_the_run_immediately(signalled, lab):
    with pytest.raises(KeyboardInterrupt):
        signalled("run", "3 SIGINT SIGINT")
    run = lab.at("run")
    assert run.steps_saved == []
    assert len(run.lines if (run.path / "metrics.jsonl").exists() else []) < 3
    signalled("run", resume=True)
    assert len(run.lines) == 5


@pytest.mark.slow
def test_sigterm_twice_still_saves(signalled, lab):
    with pytest.raises(Interrupted):
        signalled("run", "2 SIGTERM SIGTERM")
    assert lab.at("run").steps_saved == [2]


@pytest.mark.slow
def test_a_run_with_a_signal_in_the_last_step_resumes_after_training(signalled, lab):
    with pytest.raises(Interrupted):
        signalled("run", "5 SIGTERM")
    run = lab.at("run")
    assert run.steps_saved == [4, 5]
    signalled("run", resume=True)
    assert run.result["status"] == "completed"
    assert len(run.lines) == 5


def test_a_signal_to_another_rank_after_the_last_step_ends_this_rank_too(lab, monkeypatch):
    answers = iter([False, True])  # in the loop; after the loop
    monkeypatch.setattr(Trainer, "stop_requested", lambda _: next(answers))
    with pytest.raises(Interrupted, match="after step 1 of 1"):
        lab.run("run", train={"max_steps": 1})
    assert lab.at("run").result["status"] == "interrupted"


SWALLOWS = """
@dataclass(eq=False)
class Swallows:
    '''Replaces every exception by another one, as some libraries do while they load.'''

    file: str
    when: str

    def send(self):
        if Path(self.file).exists():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)
            except Exception as error:
                raise ModuleNotFoundError("are the requirements installed?") from error

    @hookimpl
    def after_load(self):
        if self.when == "load":
            self.send()

    @hookimpl
    def on_train_end(self):
        if self.when == "end":
            self.send()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("when", "saved"), [("load", []), ("end", [2, 4, 6])])
def test_a_signal_outside_of_training_ends_the_run_even_if_a_library_catches_exceptions(lab, when, saved):
    lab.plugin("swallows", SWALLOWS)
    switch = lab.folder / "switch.txt"
    switch.touch()
    recipe = lab.recipe(treatments={"./swallows.py:Swallows": {"file": str(switch), "when": when}})
    with pytest.raises(Interrupted) as caught:
        lab.run("run", recipe)
    assert caught.value.exit_code == 143
    run = lab.at("run")
    assert run.result["status"] == "interrupted"
    assert run.steps_saved == saved
    switch.unlink()
    lab.run("run", recipe, resume=True)
    assert run.result["status"] == "completed"
    assert len(run.lines) == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("numbers", "code"),
    [((signal.SIGINT,), 130), ((signal.SIGTERM,), 143), ((signal.SIGINT, signal.SIGINT), 130)],
    ids=["SIGINT", "SIGTERM", "two SIGINTs"],
)
def test_exit_codes_of_the_command(lab, numbers, code):
    """In a separate process that waits in its first step until the signals have been sent."""
    lab.plugin("slow", SLOW)
    hold = lab.folder / "hold.txt"
    hold.touch()
    recipe = lab.recipe(treatments={"./slow.py:Slow": {"file": str(hold)}})
    process = lab.start(recipe, "run")
    while not re.search(r"^training: \d+ steps", process.out + process.err, re.MULTILINE):
        assert process.is_alive(), process.err
        time.sleep(0.1)
    time.sleep(1)
    for number in numbers:
        os.kill(process.pid, number)
        time.sleep(0.5)
    if len(numbers) == 1:
        assert process.is_alive()  # the signal takes effect at the end of the step
        hold.unlink()
    process.end(60)
    assert process.exitcode == code, process.err
    assert "Traceback" not in process.out + process.err
    assert lab.at("run").steps_saved == ([1] if len(numbers) == 1 else [])
    hold.unlink(missing_ok=True)
    lab.run("run", recipe, resume=True)
    assert lab.at("run").result["status"] == "completed"
