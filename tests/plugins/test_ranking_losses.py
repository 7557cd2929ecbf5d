"""Ranking losses against their definitions, draw by draw and pair by pair, in float64."""

from dataclasses import replace
from itertools import combinations, permutations
from math import log1p

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from numpy.testing import assert_allclose
from scipy.special import logsumexp

from neoplug.testing import check_loss, examples, value
from neoplug_losses.cross_entropy import CrossEntropy
from neoplug_losses.listwise import Listwise
from neoplug_losses.pairwise import Pairwise

quick = settings(deadline=None, max_examples=20)


def without_ties(example):
    """Return the example without ties of the teacher, whose logits are multiples of 1/8: adds multiples of 1/64."""
    return replace(example, teacher=example.teacher + torch.arange(example.teacher.shape[1]) / 64)


def orders(example):
    """Yield each token's student logits in float64 and the teacher's order, best first."""
    for student, teacher in zip(example.student.double().numpy(), example.teacher.numpy(), strict=True):
        yield student, np.argsort(-teacher)


def negative_log_likelihood(student, drawn):
    """Return -log of the probability to draw these in this order, without replacement."""
    left, total = list(range(len(student))), 0.0
    for entry in drawn:
        total += logsumexp(student[left]) - student[entry]
        left.remove(entry)
    return total


@pytest.mark.parametrize("k", [1, 3, 8])
@quick
@given(example=examples())
def test_listwise_is_the_negative_log_likelihood_of_the_teachers_order(k, example):
    example = without_ties(example)
    expected = [negative_log_likelihood(student, order[:k]) for student, order in orders(example)]
    assert_allclose(value(Listwise(k), example), expected, rtol=1e-5, atol=1e-5)


@quick
@given(examples())
def test_the_first_draw_is_cross_entropy_with_the_teachers_best(example):
    example = without_ties(example)
    best = replace(example, labels=example.teacher.argmax(-1))
    assert_allclose(value(Listwise(k=1), best), value(CrossEntropy(), best), rtol=1e-5, atol=1e-5)


def test_the_probabilities_of_all_orders_sum_to_one():
    student = torch.tensor([[2.0, -1.0, 0.5, 0.0]]).log_softmax(-1)
    teachers = (torch.zeros(1, 4).index_fill(1, torch.tensor(a), 2).index_fill(1, torch.tensor(b), 1)
                for a, b in permutations(range(4), 2))  # fmt: skip
    probabilities = [torch.exp(-Listwise(k=2).token_loss(student, teacher)).item() for teacher in teachers]
    assert len(probabilities) == 12
    assert sum(probabilities) == pytest.approx(1, rel=1e-6)


def mean_penalty(student, order, k, penalty):
    return np.mean([penalty(student[above] - student[below]) for above, below in combinations(order[:k], 2)])


@pytest.mark.parametrize("k", [2, 8])
@quick
@given(example=examples())
def test_pairwise_is_the_mean_penalty_of_the_pairs(k, example):
    example = without_ties(example)
    for loss, penalty in (
        (Pairwise(k), lambda gap: np.logaddexp(0, -gap)),
        (Pairwise(k, margin=2.0), lambda gap: np.logaddexp(0, 2 - gap)),
        (Pairwise(k, "hinge", margin=0.5), lambda gap: max(0, 0.5 - gap)),
    ):
        expected = [mean_penalty(student, order, k, penalty) for student, order in orders(example)]
        assert_allclose(value(loss, example), expected, rtol=1e-5, atol=1e-5)


def test_a_pair_that_the_teacher_ties_adds_nothing():
    student, teacher = torch.tensor([[5.0, 1.0, -3.0]]).log_softmax(-1), torch.zeros(1, 3).log_softmax(-1)
    found, gradient = Pairwise().token_gradient(student, teacher)
    assert found.item() == 0
    assert not gradient.any()


def test_the_gradient_of_a_pair_is_the_sigmoid_of_its_gap_and_0_elsewhere():
    student, teacher = torch.tensor([[0.0, 1.0, 5.0]]).log_softmax(-1), torch.tensor([[2.0, 1.0, 0.0]]).log_softmax(-1)
    found, gradient = Pairwise(k=2).token_gradient(student, teacher)
    slope = 1 / (1 + np.exp(-1))
    assert found.item() == pytest.approx(1 + log1p(np.exp(-1)), rel=1e-6)
    assert_allclose(gradient[0], [-slope, slope, 0], rtol=1e-6)


@pytest.mark.parametrize("loss", [Pairwise(surrogate="hinge"), Pairwise(surrogate="hinge", margin=1.0), Listwise(k=1)])
def test_properties_of_every_loss_hold_with_other_options(loss):
    check_loss(loss, max_examples=10)
