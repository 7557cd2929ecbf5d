"""Divergences of the shelf: values against float64 definitions by scipy, limits, inequalities, refusals."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from numpy.testing import assert_allclose
from scipy.special import rel_entr, softmax

from neoplug.testing import call, examples, value
from neoplug_losses.cross_entropy import CrossEntropy
from neoplug_losses.forward_kl import ForwardKL
from neoplug_losses.jeffreys import Jeffreys
from neoplug_losses.reverse_kl import ReverseKL
from neoplug_losses.skew_forward_kl import SkewForwardKL
from neoplug_losses.skew_reverse_kl import SkewReverseKL

quick = settings(deadline=None, max_examples=30)


def kl(p, q):
    return rel_entr(p, q).sum(-1)


# class -> (options, definition by float64 probabilities [N, V])
DEFINITIONS = {
    Jeffreys: ({"forward_share": 0.3}, lambda p, q: 0.3 * kl(p, q) + 0.7 * kl(q, p)),
    SkewForwardKL: ({"alpha": 0.2}, lambda p, q: kl(p, 0.2 * p + 0.8 * q)),
    SkewReverseKL: ({"alpha": 0.2}, lambda p, q: kl(q, 0.8 * p + 0.2 * q)),
}
each = pytest.mark.parametrize("cls", DEFINITIONS, ids=lambda cls: cls.__name__)


def probabilities(example, temperature=1.0):
    """Return p and q, teacher's and student's probabilities, in float64."""
    return (softmax(z.numpy().astype(np.float64) / temperature, -1) for z in (example.teacher, example.student))


def pairs(rows=6, size=11, scale=2.0, seed=0):
    """Return log-probabilities of teacher and student, float64 [rows, size]."""
    rng = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(2, rows, size, generator=rng, dtype=torch.float64)).log_softmax(-1)


@each
def test_the_value_is_its_definition_at_any_temperature(cls):
    options, definition = DEFINITIONS[cls]

    @quick
    @given(examples())
    def holds(example):
        for temperature in (1.0, 2.5):
            expected = temperature**2 * definition(*probabilities(example, temperature))
            assert_allclose(value(cls(temperature, **options), example), expected, rtol=1e-5, atol=5e-5)

    holds()


@pytest.mark.parametrize("cls", [*DEFINITIONS, CrossEntropy], ids=lambda cls: cls.__name__)
def test_float32_finds_the_float64_gradient_of_a_real_vocabulary(cls):
    loss = CrossEntropy(label_smoothing=0.1) if cls is CrossEntropy else cls(**DEFINITIONS[cls][0])
    rng = torch.Generator().manual_seed(0)
    student, teacher = (4 * torch.randn(2, 128_256, generator=rng, dtype=torch.float64) for _ in range(2))
    logits = student.requires_grad_()
    wide = {"student": logits.log_softmax(-1), "teacher": teacher.log_softmax(-1), "labels": torch.tensor([5, 70_000])}
    expected = call(loss.token_loss, wide)
    expected.sum().backward()
    narrow = {key: tensor.detach().float() if tensor.is_floating_point() else tensor for key, tensor in wide.items()}
    found, gradient = call(loss.token_gradient, narrow)
    assert_allclose(found, expected.detach(), rtol=2e-6)
    assert (gradient - logits.grad).norm() < 2e-5 * logits.grad.norm()


@quick
@given(examples())
def test_smoothed_labels_are_torchs(example):
    found = value(CrossEntropy(label_smoothing=0.1), example)
    expected = torch.nn.functional.cross_entropy(
        example.student.double(), example.labels, label_smoothing=0.1, reduction="none"
    )
    assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_jeffreys_is_the_mean_of_both_kls():
    log_p, log_q = pairs()
    both = (ForwardKL().token_loss(log_q, log_p) + ReverseKL().token_loss(log_q, log_p)) / 2
    assert_allclose(Jeffreys().token_loss(log_q, log_p), both)


@pytest.mark.parametrize(("cls", "limit"), [(SkewForwardKL, ForwardKL), (SkewReverseKL, ReverseKL)])
def test_skew_kls_tend_to_the_kls_and_stay_below_their_bound(cls, limit):
    log_p, log_q = pairs()
    assert_allclose(cls(alpha=1e-9).token_loss(log_q, log_p), limit().token_loss(log_q, log_p), rtol=1e-4)
    strangers = (90 * torch.eye(2)).log_softmax(-1)
    assert_allclose(cls(alpha=0.25).token_loss(strangers, strangers.flip(0)), -np.log(0.25), rtol=1e-6)


@pytest.mark.parametrize(
    ("cls", "options", "limits"),
    [
        (CrossEntropy, {"label_smoothing": 1.0}, "no label"),
        (Jeffreys, {"forward_share": 1.0}, "reverse_kl and forward_kl"),
        (SkewForwardKL, {"alpha": 0.0}, "forward_kl"),
        (SkewReverseKL, {"alpha": float("nan")}, "reverse_kl"),
    ],
)
def test_an_option_out_of_range_is_refused_and_the_limit_named(cls, options, limits):
    (name,) = options
    with pytest.raises(ValueError, match=rf"^{name} is .*{limits}"):
        cls(**options)


@each
def test_gradients_are_fresh_tensors(cls):
    """The objective may overwrite what it gets, so nothing may alias an input."""
    log_p, log_q = (torch.randn(2, 5).log_softmax(-1) for _ in range(2))
    for temperature in (1.0, 2.0):
        given_back = cls(temperature).token_gradient(log_q, log_p)
        inputs = {log_p.untyped_storage().data_ptr(), log_q.untyped_storage().data_ptr()}
        assert not inputs & {tensor.untyped_storage().data_ptr() for tensor in given_back}
