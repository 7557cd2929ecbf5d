"""Training diagnostics, compared with autograd and torch's functions in float64."""

import pytest
import torch
from torch.nn import functional

from neoplug.training.diagnostics import Diagnosis, means

T, V = 7, 31


@pytest.fixture
def logits():
    rng = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(T, V, generator=rng, dtype=torch.float64) * 2 for _ in range(2))
    return student.requires_grad_(), teacher, torch.randint(V, (T,), generator=rng)


def diagnose(student, teacher, labels, tile):
    diagnosis = Diagnosis(torch.device("cpu"))
    for log_q, log_p, y in zip(*(values.split(tile) for values in (student, teacher, labels)), strict=True):
        diagnosis.add(log_q.log_softmax(-1).float(), log_p.log_softmax(-1).float(), y)
    return means(diagnosis.sums.tolist(), len(labels))


@pytest.mark.parametrize("tile", [2, T])
def test_the_cosine_is_that_of_autograds_gradients(logits, tile):
    student, teacher, labels = logits
    log_q, p = student.log_softmax(-1), teacher.softmax(-1)
    (kd,) = torch.autograd.grad(functional.kl_div(log_q, p, reduction="sum"), student, retain_graph=True)
    (ce,) = torch.autograd.grad(functional.cross_entropy(student, labels, reduction="sum"), student)
    cosine = functional.cosine_similarity(kd.flatten(), ce.flatten(), dim=0).item()
    assert diagnose(student.detach(), teacher, labels, tile)["kd_ce_cosine"] == pytest.approx(cosine, rel=1e-5)


def test_the_tile_size_has_no_effect(logits):
    student, teacher, labels = logits
    assert diagnose(student.detach(), teacher, labels, 2) == pytest.approx(
        diagnose(student.detach(), teacher, labels, T)
    )


def test_a_student_equal_to_its_teacher_has_all_of_its_mass(logits):
    _, teacher, labels = logits
    found = diagnose(teacher, teacher, labels, T)
    assert found["top10_mass_share"] == found["top1_agreement"] == 1
    assert found["student_entropy"] == found["teacher_entropy"]
    assert found["student_cross_entropy"] == found["teacher_cross_entropy"]
    assert found["kd_ce_cosine"] == 0  # the gradient of the divergence is 0
