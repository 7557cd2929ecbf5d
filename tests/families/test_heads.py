"""The chunked head of every family against the model's own logits in float64: value and gradients of every weight."""

import copy

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from neoplug.data.batch import Document, collate
from neoplug.models.verify import head_name, language_model
from neoplug.models.vocabulary import Vocabulary
from neoplug.testing.families import FAMILIES, configuration
from neoplug.training import objective
from neoplug.training.objective import Loss

TOKENS = 259
LAYOUT = {"bloom": "padded", "falcon_h1": "padded"}  # the others isolate documents in attention
QUICK = {"gemma2", "qwen3_moe"}
EACH = [pytest.param(family, marks=[] if family in QUICK else pytest.mark.slow) for family in FAMILIES]
WINDOWED = {"gemma2", "gemma3_text", "mistral", "qwen3"}


def documents(*lengths):
    rng = np.random.default_rng(0)
    return [Document(rng.integers(3, TOKENS, n), rng.random(n) < 0.7, row) for row, n in enumerate(lengths)]


def as_loss(weight=1.0):
    return Loss("nll", weight, lambda student, labels, **_: -student.gather(-1, labels[:, None])[:, 0])


def expected(model, rows):
    """Return the summed loss of documents, each a separate forward pass of the model, with its graph."""
    total = 0.0
    for row in rows:
        ids, scored = torch.from_numpy(row.input_ids)[None], torch.from_numpy(row.loss_mask[1:])
        log_q = model(input_ids=ids, use_cache=False).logits[0, :-1][scored].log_softmax(-1)
        total -= log_q.gather(-1, ids[0, 1:][scored, None]).sum()
    return total


@pytest.fixture(scope="module")
def model(folder):
    """Return a function that returns a family's model in float32, fully trainable, and a copy in float64."""

    def pair(family, **options):
        one = AutoModelForCausalLM.from_pretrained(folder(family), experts_implementation="eager", **options).eval()
        return one, copy.deepcopy(one).double()

    return pair


@pytest.mark.parametrize("family", EACH)
def test_value_and_gradient(model, family, monkeypatch):
    """Documents longer than a window of attention, in blocks of 7 answer tokens."""
    monkeypatch.setattr(objective, "BLOCK", 7 * TOKENS)
    ours, exact = model(family)
    student = language_model(ours, head_name(ours), Vocabulary(TOKENS), longest=30)
    assert student.layout == LAYOUT.get(family, "varlen")
    rows = documents(30, 8, 21)
    batch = collate(rows)
    total, _ = objective.objective([as_loss()], student.hidden(batch), student.head, None, batch.labels, 0.0)
    total.backward()
    reference = expected(exact, rows)
    reference.backward()
    assert total.item() == pytest.approx(reference.item(), rel=1e-6)
    largest = max(weight.grad.abs().max() for weight in exact.parameters() if weight.grad is not None)
    for (name, weight), true in zip(ours.named_parameters(), exact.parameters(), strict=True):
        assert (weight.grad is None) == (true.grad is None), name
        if true.grad is not None:
            torch.testing.assert_close(weight.grad.double(), true.grad, rtol=1e-3, atol=1e-5 * float(largest), msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", sorted(WINDOWED | {"opt", "gpt2"}))
def test_a_block_mask_gives_the_same_loss(model, family, attention):
    if (family, attention) == ("gemma2", "sdpa"):
        pytest.skip("Gemma 2 has no sdpa")
    ours, exact = model(family, attn_implementation=attention)
    student = language_model(ours, head_name(ours), Vocabulary(TOKENS), longest=40)
    student.layout = "block"
    rows = documents(40, 25, 40)
    with torch.no_grad():
        batch = collate(rows)
        total, _ = objective.objective([as_loss()], student.hidden(batch), student.head, None, batch.labels, 0.0)
        assert total.item() == pytest.approx(expected(exact, rows).item(), rel=1e-6)
        if family in WINDOWED:  # a mask without the window must differ
            student.windows = dict.fromkeys(student.windows)
            assert not np.isclose(student.head(student.hidden(batch)).sum(), own_sum(exact, rows), rtol=1e-4)


def own_sum(model, rows):
    logits = [
        model(torch.from_numpy(r.input_ids)[None]).logits[0, :-1][torch.from_numpy(r.loss_mask[1:])] for r in rows
    ]
    return torch.cat(logits).sum().item()


def test_windows_are_read_from_the_configuration():
    """The windows of these families are smaller than the documents."""
    found = {family for family in FAMILIES if (getattr(configuration(family), "sliding_window", None) or 99) < 30}
    assert found == WINDOWED
