"""Every installed token weight passes the conformance kit and equals its formula."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from neoplug.registry import Plugins
from neoplug.testing import check_token_weight
from neoplug.training.objective import TokenWeights
from neoplug_token_weights.position import Position
from neoplug_token_weights.student_confidence import StudentConfidence
from neoplug_token_weights.teacher_entropy import TeacherEntropy


def test_properties_of_a_token_weight(token_weight):
    check_token_weight(token_weight)


def log_probabilities(seed):
    return torch.log_softmax(3 * torch.randn(7, 11, generator=torch.Generator().manual_seed(seed)), -1)


def weights(plugin: object, log_p: torch.Tensor) -> torch.Tensor:
    """Return the weights [N] that the objective computes for a teacher's log-probabilities [N, V]."""
    functions = Plugins({"token_weights": {"weight": plugin}}).functions("token_weight")
    of_tokens = TokenWeights(functions, position=torch.arange(len(log_p)))
    labels = torch.zeros(len(log_p), dtype=torch.int64)
    return of_tokens.of(slice(None), student=log_probabilities(7), teacher=log_p, labels=labels, progress=0.0)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_teacher_entropy_is_scipys(gamma):
    log_p = log_probabilities(1)
    share = entropy(log_p.double().exp().numpy(), axis=-1) / np.log(11)
    uncertain = weights(TeacherEntropy(gamma=gamma), log_p)
    certain = weights(TeacherEntropy("certain", gamma), log_p)
    np.testing.assert_allclose(uncertain, share**gamma, rtol=1e-5)
    np.testing.assert_allclose(certain, (1 - share) ** gamma, rtol=1e-5)


def test_cross_entropy_times_student_confidence_is_the_focal_loss():
    """Lin et al. 2017, equation 4, from the probabilities of the answer tokens."""
    log_q, labels = log_probabilities(2), torch.arange(7)
    q = log_q.double().exp()[torch.arange(7), labels]
    focal = StudentConfidence().token_weight(log_q, labels) * -log_q[torch.arange(7), labels]
    torch.testing.assert_close(focal.double(), -((1 - q) ** 2) * q.log(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(StudentConfidence("easy", 3.0).token_weight(log_q, labels).double(), q**3)


def test_position_halves_every_half_life():
    early = Position(half_life=8.0).token_weight(torch.tensor([0, 8, 16, 24]))
    assert early.tolist() == pytest.approx([1, 0.5, 0.25, 0.125])
    late = Position("late", half_life=8.0).token_weight(torch.tensor([-1, 7, 15, 23]))
    assert late.tolist() == pytest.approx([0, 0.5, 0.75, 0.875])


class Faulty:
    def __init__(self, weight):
        self.weight = weight

    def token_weight(self, student, teacher, labels, position):
        return self.weight(student, teacher, labels, position)


@pytest.mark.parametrize(
    ("weight", "word"),
    [
        (lambda s, t, y, n: s.gather(-1, y[:, None]), "not \\[1\\]"),
        (lambda s, t, y, n: s.gather(-1, y[:, None])[:, 0] - 1, "at least 0"),
        (lambda s, t, y, n: 1 / (n.float() - 100_000), "at least 0"),
        pytest.param(lambda s, t, y, n: t.exp().amax(-1) / t.exp().amax(), "one row at a time", marks=pytest.mark.slow),
        (lambda s, t, y, n: t.exp_().amax(-1), "writes into `teacher`"),
    ],
    ids=["shape", "negative", "infinite", "batch", "in place"],
)
def test_faults_are_found(weight, word):
    with pytest.raises(AssertionError, match=word):
        check_token_weight(Faulty(weight))
