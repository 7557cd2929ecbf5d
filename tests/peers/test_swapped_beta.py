"""TRL's GKD until 2025 weighted the student's part of the mixture by the teacher's beta (trl#3043).

TRL, Liger and ms-swift also define beta 0 and 1 as the KLs, but the limit of the formula there is 0.
"""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.special import rel_entr, softmax

from neoplug.models.head import Head
from neoplug.models.vocabulary import Vocabulary
from neoplug.teachers.signals import StatesSignal
from neoplug.training.objective import objective
from neoplug_losses.jsd import JensenShannon

N, V = 6, 19


def test_beta_weights_the_teacher_and_its_part_of_the_mixture(losses):
    identity = torch.nn.Linear(V, V, bias=False).requires_grad_(False)
    identity.weight.data.copy_(torch.eye(V))
    head = Head(identity, Vocabulary(V))
    teacher, student = 2 * torch.randn(2, N, V, generator=torch.Generator().manual_seed(0))
    named = losses(jsd=(1.0, JensenShannon(beta=0.1)))
    _, values = objective(named, student, head, StatesSignal(teacher, head), torch.zeros(N).long(), 0.0)

    p, q = (softmax(logits.numpy().astype(np.float64), -1) for logits in (teacher, student))
    right, swapped = 0.1 * p + 0.9 * q, 0.9 * p + 0.1 * q
    expected, wrong = ((0.1 * rel_entr(p, m) + 0.9 * rel_entr(q, m)).sum(-1) for m in (right, swapped))
    assert_allclose(values[0], expected, rtol=1e-4)
    assert (np.abs(wrong - expected) > 0.5 * expected).all()


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_beta_0_and_1_are_refused(beta):
    with pytest.raises(ValueError, match="forward_kl and reverse_kl"):
        JensenShannon(beta=beta)
