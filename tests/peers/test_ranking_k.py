"""KDFlow's ranking losses ignore the k of their configuration."""

import pytest
import torch

from neoplug.models.head import Head
from neoplug.models.vocabulary import Vocabulary
from neoplug.teachers.signals import StatesSignal
from neoplug.training.objective import objective
from neoplug_losses.listwise import Listwise
from neoplug_losses.pairwise import Pairwise

N, V = 4, 17


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("loss", [Listwise, Pairwise])
def test_the_teachers_k_most_likely_tokens_are_ordered(losses, loss, k):
    """One step of descent raises, among these k, the first over the last; pairs beyond them have no gradient."""
    identity = torch.nn.Linear(V, V, bias=False).requires_grad_(False)
    identity.weight.data.copy_(torch.eye(V))
    head = Head(identity, Vocabulary(V))
    teacher = torch.randn(N, V, generator=torch.Generator().manual_seed(0))
    student = torch.zeros(N, V, requires_grad=True)
    total, _ = objective(
        losses(rank=(1.0, loss(k=k))), student, head, StatesSignal(teacher, head), torch.zeros(N).long(), 0.0
    )
    total.backward()
    ordered = student.grad.gather(-1, teacher.argsort(-1, descending=True))
    assert (ordered[:, 0] < ordered[:, k - 1]).all()
    assert (ordered[:, k - 1] != ordered[:, k]).all()
    torch.testing.assert_close(ordered[:, k:], ordered[:, k:].mean(-1, keepdim=True).expand(-1, V - k))
