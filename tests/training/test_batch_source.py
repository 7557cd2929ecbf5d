"""Micro-batches that a thread makes one step ahead for a GPU: the same as without it, and the thread ends."""

import threading
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from neoplug.data import BatchSampler
from neoplug.data.batch import Batch, Document
from neoplug.hookspecs import hookimpl
from neoplug.registry import Plugins
from neoplug.training.batch_source import BatchSource, step_batches

STEPS = 5


class Rows(list):
    """Rows that record the thread which reads each, and fail at one."""

    broken = None

    def __init__(self, rows):
        super().__init__(rows)
        self.threads = set()

    def __getitem__(self, index):
        self.threads.add(threading.current_thread())
        if index == self.broken:
            raise OSError("the store is damaged")
        return super().__getitem__(index)


@dataclass(eq=False)
class Shuffled:
    """Edits documents, by numbers of its own."""

    @hookimpl
    def edit_documents(self, documents, rng):
        self.thread = threading.current_thread()
        order = torch.randperm(len(documents[0]), generator=rng).numpy()
        return [Document(document.input_ids[order], document.loss_mask, document.row) for document in documents]


@pytest.fixture
def pinned(monkeypatch):
    """Return the tensors that were pinned: a machine without a GPU has no such memory."""
    tensors = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensors.append(tensor) or tensor.clone())
    return tensors


def source(plugins=()):
    rng = np.random.default_rng(0)
    documents = [Document(rng.integers(3, 90, 6), np.ones(6, dtype=bool), row) for row in range(11)]
    corpus = SimpleNamespace(rows=Rows([[document] for document in documents]), longest={"student": 6})
    named = Plugins({"treatments": {type(plugin).__name__.lower(): plugin for plugin in plugins}})
    return BatchSource(corpus=corpus, sampler=BatchSampler(11, 2, 2, 1, 3), plugins=named, seed=3, rank=0)


def taken(made, device, first=0):
    with step_batches(made, torch.device(device), first, STEPS) as batches_of:
        return [batch for step in range(first, STEPS) for batch, _ in batches_of(step)]


def same(left: Batch, right: Batch):
    return all(torch.equal(getattr(left, name), getattr(right, name)) for name in ("input_ids", "labels", "rows"))


def started():
    return [thread for thread in threading.enumerate() if thread.name.startswith("neoplug-batches")]


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("plugins", [[], [Shuffled()]], ids=["a thread", "a plugin edits"])
def test_batches_for_a_gpu_are_those_of_the_cpu(pinned, first, plugins):
    on_cpu, for_gpu = taken(source(plugins), "cpu", first), taken(source(plugins), "cuda", first)
    assert len(on_cpu) == (STEPS - first) * 2
    assert all(same(*pair) for pair in zip(on_cpu, for_gpu, strict=True))
    assert len(pinned) == len(on_cpu) * 4
    assert not started()


def test_a_thread_makes_the_batches_of_the_next_step(pinned):
    made = source()
    with step_batches(made, torch.device("cuda"), 0, STEPS) as batches_of:
        batches_of(0)
        (thread,) = started()
        while len(pinned) < 16:  # of two steps
            thread.join(0.01)
        assert made.corpus.rows.threads == {thread}
    assert not started()


def test_a_plugin_edits_in_the_main_thread(pinned):
    plugin = Shuffled()
    taken(source([plugin]), "cuda")
    assert plugin.thread is threading.main_thread()


def test_on_a_cpu_there_is_no_thread(pinned):
    made = source()
    taken(made, "cpu")
    assert made.corpus.rows.threads == {threading.main_thread()}
    assert pinned == []


def test_an_error_arises_at_the_step_that_it_belongs_to(pinned):
    made = source()
    made.corpus.rows.broken = made.sampler.micro_batches(2, 0)[1][0]
    steps = []

    def run():
        with step_batches(made, torch.device("cuda"), 0, STEPS) as batches_of:
            for step in range(STEPS):
                batches_of(step)
                steps.append(step)

    with pytest.raises(OSError, match="damaged"):
        run()
    assert steps == [0, 1]
    assert not started()


def test_the_thread_ends_with_an_error_of_a_step(pinned):
    def run():
        with step_batches(source(), torch.device("cuda"), 0, STEPS) as batches_of:
            batches_of(0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert not started()
