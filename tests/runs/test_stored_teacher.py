"""A third-party teacher that serves stored logits gives the numbers of the live one, bit for bit."""

import pytest

from neoplug.runs.model_loader import ModelLoader
from neoplug.teachers.base import LOGITS


def key(batch):
    """Return the tokens that the teacher reads and the positions of its predictions."""
    theirs = batch.for_teacher()
    return theirs.input_ids.numpy().tobytes(), theirs.positions.numpy().tobytes()


class Recorder:
    """A live teacher whose logits are copied to `stored`."""

    def __init__(self, live, stored):
        self.live, self.stored, self.model = live, stored, live.model

    def signal(self, batch):
        signal = self.live.signal(batch)
        self.stored[key(batch)] = signal.logits(slice(None)).clone()
        return signal

    def prefetch(self, batch):
        self.live.prefetch(batch)

    def describe(self):
        return self.live.describe()


class Stored:
    """A teacher without a model in memory, which returns logits that another teacher stored."""

    model = None

    def __init__(self, stored):
        self.stored, self.events = stored, []

    def signal(self, batch):
        self.events.append(("signal", key(batch)))
        return StoredSignal(self.stored[key(batch)])

    def prefetch(self, batch):
        self.events.append(("prefetch", key(batch)))

    def describe(self):
        return {"kind": "stored"}


class StoredSignal:
    provides = frozenset({LOGITS})

    def __init__(self, whole):
        self.whole = whole

    def logits(self, rows):
        return self.whole[rows].clone()


TEMPLATE = "Be wise.\n{% for m in messages %}{{ m['role'] }}:\n{{ m['content'] }}\n{% endfor %}"


@pytest.mark.parametrize("template", [None, TEMPLATE], ids=["the student's prompt", "a prompt for the teacher"])
def test_stored_logits_give_the_run_of_the_live_teacher(lab, monkeypatch, template):
    stored = {}
    live = ModelLoader.load_teacher
    sections = {
        "loss": {"cross_entropy": {"weight": 0.5}, "reverse_kl": {"weight": 2.0, "calibrate": "forward_kl"}},
        "token_weights": {"teacher_entropy": {}},
        "train": {"logging_steps": 2, "log_gradient_norms": True},
        "teacher": {"chat_template": template} if template else {},
        "evaluate": {"eval_steps": 3},
    }
    monkeypatch.setattr(ModelLoader, "load_teacher", lambda self: Recorder(live(self), stored))
    expected = lab.run("live", **sections)
    served = Stored(stored)
    monkeypatch.setattr(ModelLoader, "load_teacher", lambda self: served)
    found = lab.run("stored", **sections)
    assert found.facts == expected.facts
    assert found.adapter_bytes == expected.adapter_bytes
    for name in ("before", "after", "evaluations", "weights"):
        assert found.result[name] == expected.result[name]
    assert found.result["teacher"] == {name: v for name, v in expected.result["teacher"].items() if name != "probes"}


def test_the_loop_prefetches_the_next_micro_batch(lab, monkeypatch):
    stored = {}
    live = ModelLoader.load_teacher
    monkeypatch.setattr(ModelLoader, "load_teacher", lambda self: Recorder(live(self), stored))
    sections = {"train": {"gradient_accumulation_steps": 3, "max_steps": 2}}
    lab.run("live", **sections)
    served = Stored(stored)
    monkeypatch.setattr(ModelLoader, "load_teacher", lambda self: served)
    lab.run("stored", **sections)
    announced = [at for at, (what, _) in enumerate(served.events) if what == "prefetch"]
    assert len(announced) == 2 * 3 - 1  # two steps of three micro-batches each: all but the first of the run
    for at in announced:
        assert served.events[at + 1] == ("signal", served.events[at][1])
