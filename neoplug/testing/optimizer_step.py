"""Loss and gradients of one optimizer step on an example, computed by the code that training uses.

The models are tables of hidden states, which are the example's logits, and the head is the identity, so the loss
receives the example's logits. Each document has three tokens, of which only the second is an answer token.

N answer tokens, T = 3 N tokens, V vocabulary.
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
from neoplug.testing.hooks import answer
from neoplug.testing.loss_examples import Example, hook, token_loss
from neoplug.training.objective import Loss, objective

ANSWER = np.array([False, True, False])
UNREAD = torch.nan  # hidden states that predict no answer token: a result that depends on one is NaN


class TableModel(nn.Module):
    """A language model whose hidden state at token id t is row t of a table, and whose head is the identity."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        table = torch.full((3 * len(logits), logits.shape[1]), UNREAD)
        table[::3] = logits
        self.states = nn.Embedding(table.shape[0], table.shape[1], _weight=table)
        self.head = nn.Linear(logits.shape[1], logits.shape[1], bias=False)
        self.head.weight = nn.Parameter(torch.eye(logits.shape[1]))

    def forward(self, input_ids: Tensor, **_: Any) -> Tensor:
        """Return the logits of the tokens."""
        logits: Tensor = self.head(self.states(input_ids))
        return logits


@dataclass(frozen=True)
class StepGradients:
    """Loss and gradients of an optimizer step.

    loss     scalar; the sum divided by the answer tokens of all micro-batches
    states   [T, V] gradient of each token's hidden state
    head     [V, V] gradient of the student's head
    teacher  the gradients that parameters of the teacher received; correct is none
    """

    loss: Tensor
    states: Tensor
    head: Tensor
    teacher: list[Tensor]


def optimizer_step(loss: Any, example: Example, parts: Iterable[slice] = (slice(None),)) -> StepGradients:
    """Compute loss and gradients of one optimizer step on an example.

    parts  the answer tokens of each micro-batch; where there are none, its document has no answer tokens

    Raises TypeError where the loss has no `token_loss`.
    """
    token_loss(loss)  # which raises it
    gradient = None if hook(loss, "token_gradient") is None else partial(answer, loss, "token_gradient")
    named = Loss("loss", 1.0, partial(answer, loss, "token_loss"), gradient)
    student, teacher = TableModel(example.student), TableModel(example.teacher)
    total = torch.zeros(())
    for part in parts:
        batch = _batch(example, part)
        signal = LiveTeacher(_model(teacher)).signal(batch)
        model = _model(student)
        weighted, _ = objective([named], model.hidden(batch), model.head, signal, batch.labels, example.progress)
        share = weighted / max(1, len(example))
        torch.autograd.backward(share)
        total = total + share.detach()
    states, head = (parameter.grad for parameter in student.parameters())
    assert states is not None
    assert head is not None
    teacher_gradients = [parameter.grad for parameter in teacher.parameters() if parameter.grad is not None]
    return StepGradients(total, states, head, teacher_gradients)


def _batch(example: Example, part: slice) -> Batch:
    """Return a micro-batch with one document for each of these answer tokens."""
    numbers = range(len(example))[part]
    documents = [Document(np.arange(3 * n, 3 * n + 3), ANSWER, n) for n in numbers]
    batch = collate(documents or [Document(np.arange(3), np.zeros(3, bool), 0)])
    batch.labels = example.labels[part]  # the token ids are rows of the table, not the example's labels
    return batch


def _model(module: TableModel) -> LanguageModel:
    head = Head(module.head, Vocabulary(module.head.out_features))
    return LanguageModel(module, head, torch.device("cpu"), layout="flat")
