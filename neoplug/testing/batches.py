"""A batch's way to a loss with nothing left out but the model: documents, mask, both heads, objective, division.

The hidden states are an example's logits and the head is the identity, so a loss sees exactly what the example says. A
document is three tokens, of which only the second is an answer: T = 3 N tokens. N answer tokens, V vocabulary.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neoplug.data.batch import Batch, Document, collate
from neoplug.models.head import Head
from neoplug.models.language_model import LanguageModel
from neoplug.models.vocabulary import Vocabulary
from neoplug.teachers.live import LiveTeacher
from neoplug.testing.examples import Example, call, hook, token_loss
from neoplug.training.objective import Loss, objective

ANSWER = np.array([False, True, False])
UNREAD = torch.nan  # what stands where no answer token is predicted: if anybody looks, everybody sees


class Recalling(nn.Module):
    """A language model whose hidden state at token number t is row t of a table, and whose head is the identity."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        table = torch.full((3 * len(logits), logits.shape[1]), UNREAD)
        table[::3] = logits
        self.states = nn.Embedding.from_pretrained(table, freeze=False)
        self.head = nn.Linear(logits.shape[1], logits.shape[1], bias=False)
        self.head.weight = nn.Parameter(torch.eye(logits.shape[1]))

    def forward(self, input_ids: Tensor, **_: Any) -> Tensor:
        """Call the head on the states of the tokens."""
        logits: Tensor = self.head(self.states(input_ids))
        return logits


@dataclass(frozen=True)
class Step:
    """What an optimizer step of an example leaves.

    loss     scalar, divided by the answer tokens of all micro-batches
    states   [T, V] the gradient of each token's hidden state
    head     [V, V] the gradient of the student's head
    teacher  the gradients that the teacher got, which should be none
    """

    loss: Tensor
    states: Tensor
    head: Tensor
    teacher: list[Tensor]


def step(loss: Any, example: Example, parts: Iterable[slice] = (slice(None),)) -> Step:
    """Run one optimizer step's micro-batches, each with some of the tokens; no tokens are a document without answer."""
    named = Loss("it", 1.0, partial(_called, token_loss(loss)), _gradient_of(loss))
    student, teacher = Recalling(example.student), Recalling(example.teacher)
    total = torch.zeros(())
    for part in parts:
        batch = _batch(example, part)
        signal = LiveTeacher(_model(teacher)).signal(batch)
        model = _model(student)
        weighted, _ = objective([named], model.hidden(batch), model.head, signal, batch.labels, example.progress)
        share = weighted / max(1, len(example))
        share.backward()
        total = total + share.detach()
    states, head = (parameter.grad for parameter in student.parameters())
    assert states is not None
    assert head is not None
    left = [parameter.grad for parameter in teacher.parameters() if parameter.grad is not None]
    return Step(total, states, head, left)


def _batch(example: Example, part: slice) -> Batch:
    numbers = range(len(example))[part]
    documents = [Document(np.arange(3 * n, 3 * n + 3), ANSWER, n) for n in numbers]
    batch = collate(documents or [Document(np.arange(3), np.zeros(3, bool), 0)])
    batch.labels = example.labels[part]  # a token's number is its place here, so the answers are written over
    return batch


def _model(module: Recalling) -> LanguageModel:
    head = Head(module.head, Vocabulary(module.head.out_features))
    return LanguageModel(module, head, torch.device("cpu"), layout="flat")


def _gradient_of(loss: Any) -> Any:
    found = hook(loss, "token_gradient")
    return None if found is None else partial(_called, found)


def _called(hook: Any, **arguments: Any) -> Any:
    return call(hook, arguments)
