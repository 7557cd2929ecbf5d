"""Forward KL, reverse KL, JSD and cross-entropy against float64 definitions by scipy; their refusals."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from numpy.testing import assert_allclose
from scipy.special import log_softmax, rel_entr, softmax

from neoplug.testing import call, examples, value
from neoplug_losses.cross_entropy import CrossEntropy
from neoplug_losses.forward_kl import ForwardKL
from neoplug_losses.jsd import JensenShannon
from neoplug_losses.reverse_kl import ReverseKL

quick = settings(deadline=None, max_examples=50)


def softened(example, temperature=1.0):
    """Return p and q, teacher's and student's probabilities, in float64."""
    return (softmax(z.numpy().astype(np.float64) / temperature, -1) for z in (example.teacher, example.student))


@quick
@given(examples())
def test_forward_kl_is_its_definition(example):
    p, q = softened(example)
    assert_allclose(value(ForwardKL(), example), rel_entr(p, q).sum(-1), rtol=1e-5, atol=1e-5)


@quick
@given(examples())
def test_reverse_kl_is_its_definition(example):
    p, q = softened(example)
    assert_allclose(value(ReverseKL(), example), rel_entr(q, p).sum(-1), rtol=1e-5, atol=1e-5)


@quick
@given(examples())
def test_jsd_is_its_definition(example):
    p, q = softened(example)
    m = 0.3 * p + 0.7 * q
    expected = (0.3 * rel_entr(p, m) + 0.7 * rel_entr(q, m)).sum(-1)
    assert_allclose(value(JensenShannon(beta=0.3), example), expected, rtol=1e-5, atol=1e-5)


@quick
@given(examples())
def test_cross_entropy_is_its_definition(example):
    log_q = log_softmax(example.student.numpy().astype(np.float64), -1)
    expected = -log_q[np.arange(len(log_q)), example.labels.numpy()]
    assert_allclose(value(CrossEntropy(), example), expected, rtol=1e-5, atol=1e-5)


@quick
@given(examples())
def test_the_square_of_the_temperature_multiplies_the_softened_divergence(example):
    p, q = softened(example, 3.0)
    m = (p + q) / 2
    for loss, expected in (
        (ForwardKL(3.0), rel_entr(p, q)),
        (ReverseKL(3.0), rel_entr(q, p)),
        (JensenShannon(3.0), (rel_entr(p, m) + rel_entr(q, m)) / 2),
    ):
        assert_allclose(value(loss, example), 9 * expected.sum(-1), rtol=1e-5, atol=1e-4)


def closed_forms(log_p, log_q, temperature):
    """Return gradients by the student's logits, derived by hand in float64, with an explicit softmax Jacobian."""
    p, q = np.exp(log_p), np.exp(log_q)
    m = 0.3 * p + 0.7 * q
    by_q = {"forward_kl": -p / q, "reverse_kl": np.log(q / p) + 1, "jsd": 0.7 * np.log(q / m)}
    jacobian = np.diag(q) - np.outer(q, q)
    return {name: temperature * jacobian @ gradient for name, gradient in by_q.items()}


@pytest.mark.parametrize("temperature", [1.0, 0.7, 4.0])
def test_gradients_equal_the_chain_rule_with_an_explicit_jacobian(temperature):
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(scale=2, size=(2, 9))
    expected = closed_forms(log_softmax(teacher / temperature), log_softmax(student / temperature), temperature)
    inputs = [torch.tensor(z, dtype=torch.float32)[None].log_softmax(-1) for z in (student, teacher)]
    found = {
        "forward_kl": ForwardKL(temperature),
        "reverse_kl": ReverseKL(temperature),
        "jsd": JensenShannon(temperature, beta=0.3),
    }
    for name, loss in found.items():
        assert_allclose(loss.token_gradient(*inputs)[1][0], expected[name], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "cross_entropy"])
def test_float32_finds_the_float64_gradient_of_a_real_vocabulary(name):
    loss = {
        "forward_kl": ForwardKL(),
        "reverse_kl": ReverseKL(),
        "jsd": JensenShannon(),
        "cross_entropy": CrossEntropy(),
    }
    rng = torch.Generator().manual_seed(0)
    student, teacher = (4 * torch.randn(2, 128_256, generator=rng, dtype=torch.float64) for _ in range(2))
    logits = student.requires_grad_()
    wide = {"student": logits.log_softmax(-1), "teacher": teacher.log_softmax(-1), "labels": torch.tensor([5, 70_000])}
    expected = call(loss[name].token_loss, wide)
    expected.sum().backward()
    narrow = {key: tensor.detach().float() if tensor.is_floating_point() else tensor for key, tensor in wide.items()}
    found, gradient = call(loss[name].token_gradient, narrow)
    assert_allclose(found, expected.detach(), rtol=1e-6)
    assert (gradient - logits.grad).norm() < 2e-5 * logits.grad.norm()


def test_jsd_swaps_its_weights_with_its_arguments():
    rng = torch.Generator().manual_seed(0)
    p, q = (torch.randn(3, 11, generator=rng).log_softmax(-1) for _ in range(2))
    assert_allclose(JensenShannon(beta=0.2).token_loss(q, p), JensenShannon(beta=0.8).token_loss(p, q), rtol=1e-5)


def test_jsd_tends_to_the_kls_at_its_ends():
    rng = torch.Generator().manual_seed(0)
    p, q = (torch.randn(3, 11, generator=rng).double().log_softmax(-1) for _ in range(2))
    small = 1e-6
    assert_allclose(JensenShannon(beta=small).token_loss(q, p) / small, ForwardKL().token_loss(q, p), rtol=1e-3)
    assert_allclose(JensenShannon(beta=1 - small).token_loss(q, p) / small, ReverseKL().token_loss(q, p), rtol=1e-3)


def test_jsd_of_disjoint_distributions_is_the_entropy_of_beta():
    certain = torch.tensor([[0.0, 90.0]]).log_softmax(-1)
    found = JensenShannon(beta=0.25).token_loss(certain.flip(-1), certain)
    assert found.item() == pytest.approx(-0.25 * np.log(0.25) - 0.75 * np.log(0.75), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("loss", [ForwardKL, ReverseKL, JensenShannon])
def test_a_temperature_out_of_range_is_refused(loss, temperature):
    with pytest.raises(ValueError, match=r"^temperature is"):
        loss(temperature=temperature)


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, float("nan")])
def test_beta_at_its_limits_is_refused(beta):
    with pytest.raises(ValueError, match=r"^beta is .* forward_kl and reverse_kl"):
        JensenShannon(beta=beta)


def test_gradients_are_fresh_tensors():
    """The objective may overwrite what a loss returns, so it must not alias an input."""
    log_p, log_q = (torch.randn(2, 5).log_softmax(-1) for _ in range(2))
    for loss in (ForwardKL(), ReverseKL(), JensenShannon(), ForwardKL(2.0)):
        found, gradient = loss.token_gradient(log_q, log_p)
        inputs = {log_p.untyped_storage().data_ptr(), log_q.untyped_storage().data_ptr()}
        assert not inputs & {tensor.untyped_storage().data_ptr() for tensor in (found, gradient)}
