"""Token weights in complete runs: the arguments of each token, and the logged metrics."""

import json
from itertools import pairwise

import pytest
import torch
from transformers import AutoTokenizer

from neoplug.errors import RunError
from neoplug.training.module import ValidatedTokenWeight

RECORDER = """
@dataclass(eq=False)
class Recorder:
    '''Weighs every token by 3, and records labels and positions.'''

    file: str

    def __post_init__(self):
        self.seen = []

    @hookimpl
    def token_weight(self, labels, position):
        self.seen.append(torch.stack([labels, position]))
        return torch.full(labels.shape, 3.0)

    @hookimpl
    def on_train_end(self):
        torch.save(torch.cat(self.seen, -1), self.file)
"""
ODD = """
@dataclass(eq=False)
class Odd:
    '''Drops every other answer token, the first of the batch among them.'''

    @hookimpl
    def edit_batch(self, batch):
        batch.positions, batch.labels, batch.rows = batch.positions[1::2], batch.labels[1::2], batch.rows[1::2]
"""


UNSOUND = """
@dataclass(eq=False)
class Unsound:
    '''Valid for the first two tokens of an answer, invalid for those after them.'''

    kind: str

    @hookimpl
    def token_weight(self, position):
        beyond = {"negative": -1.0, "infinite": torch.inf}[self.kind]
        return torch.where(position < 2, 1.0, beyond)
"""


@pytest.fixture
def run_and_recorded(lab):
    lab.plugin("recorder", RECORDER)
    lab.plugin("odd", ODD)

    def run(name, **sections):
        weights = {"./recorder.py:Recorder": {"file": str(lab.folder / f"{name}.pt")}}
        train = {"max_steps": None, "num_train_epochs": 1.0, "gradient_accumulation_steps": 1, "logging_steps": 1}
        found = lab.run(name, token_weights=weights, train=train, **sections)
        return found, torch.load(lab.folder / f"{name}.pt").T.tolist()

    return run


def turns(pairs, tokenizer):
    """Return the text of each answer: a new one begins where the position is 0."""
    starts = [number for number, (_, position) in enumerate(pairs) if position == 0] + [len(pairs)]
    for start, end in pairwise(starts):
        assert [position for _, position in pairs[start:end]] == list(range(end - start))
        yield tokenizer.decode([label for label, _ in pairs[start:end]], skip_special_tokens=True).strip()


@pytest.mark.slow
def test_positions_are_counted_within_each_assistants_turn(run_and_recorded, tiny_chat, tiny_student):
    run, pairs = run_and_recorded("plain")
    rows = [json.loads(line)["messages"] for line in tiny_chat.read_text().splitlines()]
    answers = [message["content"] for row in rows for message in row if message["role"] == "assistant"]
    found = list(turns(pairs, AutoTokenizer.from_pretrained(tiny_student)))
    assert set(found) <= set(answers)
    assert len(found) > 21  # three rows are held out, and every third has two turns
    assert len(pairs) == sum(line["answer_tokens"] for line in run.lines)

    _, packed = run_and_recorded("packed", data={"packing": True})
    assert sorted(packed) == sorted(pairs)
    _, dropped = run_and_recorded("dropped", treatments={"./odd.py:Odd": {}}, data={"packing": True})
    assert 0 < len(dropped) < len(packed)
    assert not {tuple(pair) for pair in dropped} - {tuple(pair) for pair in packed}


@pytest.mark.slow
def test_losses_are_those_of_weighted_tokens(run_and_recorded, lab):
    plain = lab.run("unweighted", train={"max_steps": 1, "gradient_accumulation_steps": 1, "logging_steps": 1}).lines[0]
    line = run_and_recorded("weighted")[0].lines[0]
    assert line["losses"] == pytest.approx({name: 3 * value for name, value in plain["losses"].items()}, rel=1e-6)
    assert line["loss"] == pytest.approx(3 * plain["loss"], rel=1e-6)
    assert line["grad_norm"] == pytest.approx(3 * plain["grad_norm"], rel=1e-5)
    assert line["diagnostics"] == plain["diagnostics"]


@pytest.mark.parametrize("kind", ["negative", pytest.param("infinite", marks=pytest.mark.slow)])
def test_an_invalid_weight_is_reported_with_the_plugins_name(lab, kind):
    lab.plugin("unsound", UNSOUND)
    weights = {"./unsound.py:Unsound@x": {"kind": kind}, "position": {}, "student_confidence": {}}
    with pytest.raises(
        RunError, match=r"^step 1: `\./unsound\.py:Unsound@x` gave a token a weight below 0, or an infinite one\n"
    ) as e:
        lab.run("run", token_weights=weights, train={"max_steps": 2})
    assert "rows at fault" in str(e.value)
    assert "`neoplug check ./unsound.py:Unsound@x`" in str(e.value)


def test_a_weight_is_not_reported_for_a_student_with_nan():
    """Every weight that depends on NaN is NaN."""
    weight = ValidatedTokenWeight(lambda student: student)
    for value, invalid in ((1.0, False), (torch.nan, False), (-0.5, True), (1.0, True)):
        weight(student=torch.tensor([1.0, value]))
        assert bool(weight.invalid) is invalid
