"""A loss or gradient that is not finite stops a run before a checkpoint has it; the message names step and rows."""

import json
import re
import sys

import pytest

from neoplug.cli import main
from neoplug.errors import RunError

FAULTS = """
@dataclass(eq=False)
class Mark:
    '''From a step on (while a file is there), labels of some rows become token 7, which no text of the test holds.'''

    rows: list[int]
    file: str
    step: int = 3
    calls: int = 0

    @hookimpl
    def edit_batch(self, batch, progress):
        if Path(self.file).exists() and round(progress * 5) + 1 >= self.step:
            hit = torch.tensor([int(row) in self.rows for row in batch.rows], dtype=torch.bool)
            batch.labels = torch.where(hit, 7, batch.labels)


@dataclass(eq=False)
class Value:
    '''Not finite at token 7, else the label's surprise.'''

    value: str

    @hookimpl
    def token_loss(self, student, labels):
        surprise = -student.gather(-1, labels[:, None]).squeeze(-1)
        return torch.where(labels == 7, float(self.value), surprise)


@dataclass(eq=False)
class Slope:
    '''Finite, but with a slope that is not at token 7.'''

    value: str

    @hookimpl
    def token_loss(self, student, labels):
        return -student.gather(-1, labels[:, None]).squeeze(-1)

    @hookimpl
    def token_gradient(self, student, labels):
        gradient = student.exp()
        gradient[torch.arange(len(labels)), labels] -= 1
        gradient[labels == 7] = float(self.value)
        return -student.gather(-1, labels[:, None]).squeeze(-1), gradient
"""
RECORD = """
@dataclass(eq=False)
class Record:
    '''Writes down which rows each step trained on.'''

    file: str

    @hookimpl
    def edit_batch(self, batch, progress):
        with open(self.file, "a") as file:
            for row in sorted(set(batch.rows.tolist())):
                print(round(progress * 5) + 1, row, file=file)
"""


@pytest.fixture
def faulty(lab):
    """Return the recipe's file for a loss that fails at rows 4 and 11, while fault.txt exists."""
    lab.plugin("faults", FAULTS)
    lab.plugin("record", RECORD)
    fault, record = lab.folder / "fault.txt", lab.folder / "record.txt"
    fault.touch()

    def recipe(loss, value, rows=(4, 11), **train):
        return lab.recipe(
            loss={"cross_entropy": {}, f"./faults.py:{loss}": {"value": value, "weight": 0.1}},
            treatments={
                "./faults.py:Mark": {"rows": list(rows), "file": str(fault)},
                "./record.py:Record": {"file": str(record)},
            },
            train=train,
        )

    return recipe


def rows_of(lab):
    """Return {step: rows} as the treatment recorded them."""
    found = {}
    for line in (lab.folder / "record.txt").read_text().splitlines():
        step, row = map(int, line.split())
        found.setdefault(step, set()).add(row)
    return found


def step_and_rows(error):
    """Return the step and the rows that a message names."""
    step = int(re.match(r"step (\d+): ", str(error)).group(1))
    rows = re.search(r"numbered from 0 in the source\): ([\d, ]+)", str(error)).group(1)
    return step, {int(row) for row in rows.split(",")}


@pytest.mark.parametrize("value", ["nan", pytest.param("inf", marks=pytest.mark.slow)])
def test_a_loss_that_is_not_finite_stops_the_run(lab, faulty, value):
    rows = range(0, 24, 2)  # every step has some of them
    recipe = faulty("Value", value, rows, save_steps=2, logging_steps=3)
    with pytest.raises(RunError, match=f"loss ./faults.py:Value is {value}") as caught:
        lab.run("run", recipe)
    step, rows_at_fault = step_and_rows(caught.value)
    assert step == 3
    assert rows_at_fault == rows_of(lab)[3] & set(rows)
    assert rows_at_fault != rows_of(lab)[3]
    assert caught.value.exit_code == 1
    run = lab.at("run")
    assert run.result["status"] == "failed"
    assert str(caught.value) == run.result["reason"]
    assert run.steps_saved == [2]
    assert [line["step"] for line in run.lines] == [1, 2]

    (lab.folder / "fault.txt").unlink()  # fixed outside of the recipe, as in data that is fetched again
    assert lab.run("run", recipe, resume=True).facts == lab.run("fixed", recipe).facts
    assert lab.at("run").adapter_bytes == lab.at("fixed").adapter_bytes


@pytest.mark.parametrize(
    ("more", "logging_steps", "certain"), [({}, 1, True), ({"cross_entropy": {}}, 9, True), ({}, 9, False)]
)
def test_a_loss_that_is_nan_by_itself_is_named_with_its_check(lab, more, logging_steps, certain):
    """Another loss, or the diagnosis of a step that is logged, shows that the student is not the cause."""
    lab.plugin("faults", FAULTS)
    (lab.folder / "fault.txt").touch()
    marks = {"rows": list(range(24)), "file": str(lab.folder / "fault.txt"), "step": 1}
    loss = {"./faults.py:Value": {"value": "nan"}, **more}
    with pytest.raises(RunError, match=r"step 1: loss \./faults\.py:Value is nan") as caught:
        lab.run("run", loss=loss, treatments={"./faults.py:Mark": marks}, train={"logging_steps": logging_steps})
    assert "`neoplug check ./faults.py:Value`" in str(caught.value).splitlines()[-1]
    assert ("so the loss is at fault" in str(caught.value)) == certain


@pytest.mark.parametrize("value", [pytest.param("nan", marks=pytest.mark.slow), "inf"])
def test_a_gradient_that_is_not_finite_stops_the_run(lab, faulty, value):
    recipe = faulty("Slope", value, range(24), save_steps=1, logging_steps=100)
    with pytest.raises(RunError, match=r"gradient is (nan|inf)") as caught:
        lab.run("run", recipe)
    assert step_and_rows(caught.value) == (3, rows_of(lab)[3])
    run = lab.at("run")
    assert run.steps_saved == [1, 2]
    assert run.result["status"] == "failed"


def test_a_fault_between_log_lines_is_in_no_checkpoint(lab, faulty):
    """The fault is in step 3, nothing is logged before step 6, and step 4 would be saved."""
    recipe = faulty("Value", "nan", range(24), save_steps=4, logging_steps=6)
    with pytest.raises(RunError, match="step 3: ") as caught:
        lab.run("run", recipe)
    assert step_and_rows(caught.value)[0] == 3
    run = lab.at("run")
    assert run.steps_saved == []
    assert [line["step"] for line in run.lines] == [1, 2]
    assert set(run.result) == {"format", "status", "reason", "before", "teacher", "sample"}


@pytest.mark.slow
def test_the_command_exits_1_and_prints_the_reason(lab, faulty, monkeypatch, capsys):
    recipe = faulty("Value", "nan", range(24))
    monkeypatch.setattr(sys, "argv", ["neoplug", "run", str(recipe), "--output", str(lab.folder / "run")])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    assert "step 3: loss ./faults.py:Value is nan" in capsys.readouterr().err
    assert json.loads((lab.folder / "run" / "result.json").read_text())["status"] == "failed"
