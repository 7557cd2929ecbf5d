"""The objective of a teacher of which only entries are known: all entries are the whole distribution."""

import pytest
import torch
from torch import nn

from neoplug.models.head import Head
from neoplug.models.vocabulary import Vocabulary
from neoplug.registry import Plugins
from neoplug.runs.steps import make_losses
from neoplug.teachers.base import SparseDistributions
from neoplug.teachers.signals import EntriesSignal, StatesSignal
from neoplug.training import objective as module
from neoplug.training.diagnostics import Diagnosis, means
from neoplug.training.objective import TokenWeights, objective
from neoplug_losses.cross_entropy import CrossEntropy
from neoplug_losses.forward_kl import ForwardKL
from neoplug_losses.hellinger import Hellinger
from neoplug_token_weights.teacher_entropy import TeacherEntropy

HIDDEN, ROWS, TOKENS = 8, 40, 23


def linear(seed):
    torch.manual_seed(seed)
    layer = nn.Linear(HIDDEN, ROWS, bias=False)
    layer.weight.data.mul_(3)
    return layer.requires_grad_(False)


@pytest.fixture
def case(monkeypatch):
    """Return the student's head, the teacher's signal, and the same one as a signal of all its entries."""
    monkeypatch.setattr(module, "BLOCK", 5 * ROWS)
    monkeypatch.setattr(module, "TILE", 2 * ROWS)
    teacher = Head(linear(2), Vocabulary(ROWS))
    torch.manual_seed(3)
    states = torch.randn(TOKENS, HIDDEN)
    log_p = teacher(states).log_softmax(-1)
    p, ids = log_p.exp().sort(descending=True)
    whole = SparseDistributions(ids, p, torch.special.entr(p).sum(-1))
    return Head(linear(1), Vocabulary(ROWS)), StatesSignal(states, teacher), whole


@pytest.mark.parametrize("last", [ROWS, ROWS - 1], ids=["a sample of all", "one token is the rest"])
def test_all_entries_are_the_whole_distribution(case, last):
    head, dense, whole = case
    rest = None if last == ROWS else whole.probabilities[:, -1]
    entries = EntriesSignal(
        SparseDistributions(whole.ids[:, :last], whole.probabilities[:, :last], whole.entropy, rest)
    )
    named = {"ce": CrossEntropy(), "kl": ForwardKL()} | ({} if rest is None else {"hellinger": Hellinger()})
    plugins = Plugins({"loss": named, "token_weights": {"entropy": TeacherEntropy()}})
    weights = TokenWeights(plugins.functions("token_weight"), torch.arange(TOKENS))
    torch.manual_seed(4)
    hidden, labels = torch.randn(TOKENS, HIDDEN), torch.randint(ROWS, (TOKENS,))
    results = []
    for signal, reads_entries in ((dense, False), (entries, True)):
        states = hidden.clone().requires_grad_()
        losses = make_losses(plugins, reads_entries)
        total, values = objective(losses, states, head, signal, labels, 0.5, token_weights=weights)
        total.backward()
        results.append((total.detach(), values, states.grad))
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_diagnostics_of_entries_are_what_they_tell(case):
    head, dense, whole = case
    losses, labels = make_losses(Plugins({"loss": {"kl": ForwardKL()}}), True), torch.arange(TOKENS)
    torch.manual_seed(4)
    hidden = torch.randn(TOKENS, HIDDEN)
    found, expected = Diagnosis(hidden.device), Diagnosis(hidden.device)
    few = SparseDistributions(whole.ids[:, :2], whole.probabilities[:, :2], whole.entropy)
    objective(losses, hidden, head, EntriesSignal(few), labels, 0.0, found)
    objective(make_losses(Plugins({"loss": {"kl": ForwardKL()}})), hidden, head, dense, labels, 0.0, expected)
    of_entries, of_whole = (means(one.sums.tolist(), TOKENS) for one in (found, expected))
    unknown = {"teacher_cross_entropy", "top10_mass_share", "kd_ce_cosine"}
    assert {name for name, value in of_entries.items() if value is None} == unknown
    known = {name: value for name, value in of_whole.items() if name not in unknown}
    assert known == pytest.approx({name: of_entries[name] for name in known}, rel=1e-5)
