"""The protocols of teachers: what the live one answers, and the refusal of a signal without logits."""

import json

import pytest
import torch
from torch import nn

from neoplug.data.batch import Document, collate
from neoplug.errors import RunError
from neoplug.models.head import Head
from neoplug.models.verify import head_name, language_model
from neoplug.models.vocabulary import Vocabulary
from neoplug.teachers.live import LiveTeacher
from neoplug.training.objective import Loss, log_probabilities, objective

N, HIDDEN, V = 5, 8, 30


class Layers:
    """A signal of the hidden states of layers only."""

    provides = frozenset({"layers"})


@pytest.fixture
def head():
    return Head(nn.Linear(HIDDEN, V, bias=False).requires_grad_(False), Vocabulary(V))


def forward_kl(student, teacher, labels, progress):
    return (teacher.exp() * (teacher - student)).sum(-1)


def by_the_objective(head, hidden):
    objective([Loss("kd", 1.0, forward_kl)], hidden, head, Layers(), torch.zeros(N).long(), 0.0)


def by_evaluation(head, hidden):
    list(log_probabilities(head, hidden.detach(), Layers()))


@pytest.mark.parametrize("reader", [by_the_objective, by_evaluation])
def test_a_signal_without_logits_is_refused_in_a_sentence(head, reader):
    with pytest.raises(RunError) as refused:
        reader(head, torch.randn(N, HIDDEN, requires_grad=True))
    assert str(refused.value).splitlines() == [
        "the teacher's signal (Layers) has no logits; it provides layers",
        "why: losses and evaluation read the teacher's probability of every token of the vocabulary",
        "fix: use a teacher that provides logits, such as a model in memory",
    ]


def test_the_live_teachers_logits_are_those_of_transformers(tiny_teacher):
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(tiny_teacher, dtype=torch.float32).eval()
    vocabulary = module.config.vocab_size
    ids = torch.arange(3, 15)
    batch = collate([Document(ids.numpy(), (ids > 8).numpy(), 0)])
    teacher = LiveTeacher(language_model(module, head_name(module), Vocabulary(vocabulary)))
    signal = teacher.signal(batch)
    with torch.no_grad():
        expected = module(input_ids=ids[None]).logits[0, :-1][ids[1:] > 8]
    torch.testing.assert_close(signal.logits(slice(None)).clone(), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(signal.logits(slice(2, 4)).clone(), expected[2:4], rtol=0, atol=1e-4)
    assert signal.provides == {"logits"}
    assert not signal.logits(slice(None)).requires_grad


def test_a_live_teacher_describes_itself_in_json(tiny_teacher):
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(tiny_teacher, dtype=torch.float32).eval()
    teacher = LiveTeacher(language_model(module, head_name(module), Vocabulary(module.config.vocab_size)))
    described = teacher.describe()
    assert json.loads(json.dumps(described)) == described
    assert described["kind"] == "live"
    assert described["dtype"] == "float32"
    assert teacher.prefetch(None) is None
