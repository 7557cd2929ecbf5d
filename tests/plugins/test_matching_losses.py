"""Losses that match the teacher entry by entry, against float64 definitions, and their relations to other losses."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from numpy.testing import assert_allclose
from scipy.special import rel_entr, softmax

from neoplug.testing import call, check_loss, examples, value
from neoplug_losses.concrete_score import ConcreteScore
from neoplug_losses.decoupled_kl import DecoupledKL
from neoplug_losses.distillm2 import DistiLLM2
from neoplug_losses.forward_kl import ForwardKL
from neoplug_losses.listwise import Listwise
from neoplug_losses.logit_mse import LogitMSE
from neoplug_losses.pairwise import Pairwise
from neoplug_losses.reverse_kl import ReverseKL
from neoplug_losses.todi import ToDi

quick = settings(deadline=None, max_examples=20)


def logits(example):
    """Return teacher's and student's logits in float64."""
    return (z.numpy().astype(np.float64) for z in (example.teacher, example.student))


def decoupled(teacher, student, label, alpha, beta, temperature):
    """Return the definition for one token; 1 - p(y) is computed as a sum, since p(y) may round to 1 even in float64."""
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    rest_p, rest_q = np.delete(p, label), np.delete(q, label)
    target = rel_entr([p[label], rest_p.sum()], [q[label], rest_q.sum()]).sum()
    others = rel_entr(rest_p / rest_p.sum(), rest_q / rest_q.sum()).sum()
    return temperature**2 * (alpha * target + beta * others)


@quick
@given(examples())
def test_decoupled_kl_is_its_definition(example):
    rows = list(zip(*logits(example), example.labels.tolist(), strict=True))
    for loss in (DecoupledKL(), DecoupledKL(alpha=0.3, beta=2.0, temperature=4.0)):
        expected = [decoupled(*row, loss.alpha, loss.beta, loss.temperature) for row in rows]
        assert_allclose(value(loss, example), expected, rtol=1e-5, atol=1e-4)


@quick
@given(examples())
def test_decoupled_kl_is_forward_kl_if_beta_is_the_mass_of_the_rest(example):
    parts = (DecoupledKL(alpha=1, beta=0), DecoupledKL(alpha=0, beta=1))
    target, others = (value(part, example).numpy() for part in parts)
    p = softmax(example.teacher.double().numpy(), -1)[np.arange(len(target)), example.labels]
    assert_allclose(target + (1 - p) * others, value(ForwardKL(), example), rtol=1e-5, atol=1e-5)


def test_decoupled_kl_includes_the_rest_where_the_target_rounds_to_1():
    teacher, student = torch.tensor([[200.0, 3, 1, 0]]), torch.tensor([[150.0, 0, 1, 2]])
    p, q = teacher.log_softmax(-1), student.log_softmax(-1)
    assert p[0, 0] == q[0, 0] == 0
    found, gradient = DecoupledKL(beta=1.0).token_gradient(q, p, torch.tensor([0]))
    rest = softmax(teacher[0, 1:].double().numpy()), softmax(student[0, 1:].double().numpy())
    assert_allclose(found, [rel_entr(*rest).sum()], rtol=1e-5)
    assert_allclose(gradient[0], [0, *(rest[1] - rest[0])], atol=1e-5)


@quick
@given(examples())
def test_todi_is_its_definition_and_the_sum_of_both_kls(example):
    p, q = (softmax(z, -1) for z in logits(example))
    a = p / (p + q)
    expected = (a * rel_entr(p, q) + (1 - a) * rel_entr(q, p)).sum(-1)
    found = value(ToDi(), example)
    assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert_allclose(found, value(ForwardKL(), example) + value(ReverseKL(), example), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 4.0])
def test_todi_does_not_differentiate_its_weights(temperature):
    teacher, student = np.random.default_rng(0).normal(scale=2, size=(2, 9))
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    a = p / (p + q)
    by_q = -a * p / q + (1 - a) * (np.log(q / p) + 1)
    expected = temperature * (np.diag(q) - np.outer(q, q)) @ by_q
    inputs = [torch.tensor(z, dtype=torch.float32)[None].log_softmax(-1) for z in (student, teacher)]
    assert_allclose(ToDi(temperature).token_gradient(*inputs)[1][0], expected, atol=2e-6, rtol=1e-5)


@quick
@given(examples())
def test_logit_mse_is_the_variance_of_the_raw_logits_difference(example):
    teacher, student = logits(example)
    assert_allclose(value(LogitMSE(), example), np.var(student - teacher, axis=-1), rtol=1e-5, atol=1e-5)


def pairs_of_scores(w1, w2, difference):
    """Return the definition, a sum over all pairs, and its gradient with constant weights."""
    gaps, weights = difference[:, None] - difference, w1[:, None] * w2
    return (weights * gaps**2).sum(), 2 * (weights * gaps).sum(1) - 2 * (weights * gaps).sum(0)


@pytest.mark.parametrize("w1", ["student", "teacher", "uniform"])
@pytest.mark.parametrize("w2", ["student", "uniform"])
@settings(deadline=None, max_examples=10)
@given(example=examples(rows=1))
def test_concrete_score_is_the_sum_over_all_pairs(w1, w2, example):
    teacher, student = (z[0] for z in logits(example))
    weights = {"student": softmax(student / 2), "teacher": softmax(teacher / 2), "uniform": np.ones(len(student))}
    expected = pairs_of_scores(weights[w1], weights[w2] / weights[w2].sum(), student - teacher)
    scale = weights[w1].sum()  # the uniform one is normalised here
    inputs = (z.log_softmax(-1) for z in (example.student, example.teacher))
    found, gradient = ConcreteScore(temperature=2.0, w1=w1, w2=w2).token_gradient(*inputs)
    assert_allclose(found[0], expected[0] / scale, rtol=1e-5, atol=1e-4)
    assert_allclose(gradient[0], expected[1] / scale, rtol=1e-5, atol=1e-4)


@quick
@given(examples())
def test_a_uniform_concrete_score_is_twice_logit_mse(example):
    uniform = ConcreteScore(w1="uniform", w2="uniform")
    assert_allclose(value(uniform, example), 2 * value(LogitMSE(), example), rtol=1e-5, atol=1e-5)


@quick
@given(examples())
def test_distillm2_is_its_definition_and_its_reverse_weight_grows_during_the_run(example):
    p, q = (softmax(z / 2, -1) for z in logits(example))
    forward, reverse = rel_entr(p, 0.1 * p + 0.9 * q).sum(-1), rel_entr(q, 0.9 * p + 0.1 * q).sum(-1)
    assert_allclose(value(DistiLLM2(2.0), example), 2 * forward + 2 * reverse, rtol=1e-5, atol=1e-5)
    share = {0.0: 0.5, 0.5: 0.75, 1.0: 0.75}[example.progress]
    expected = 4 * ((1 - share) * forward + share * reverse)
    assert_allclose(value(DistiLLM2(2.0, gradual_beta=True), example), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [DecoupledKL(), ToDi(), LogitMSE(), ConcreteScore(), DistiLLM2(gradual_beta=True), Listwise(), Pairwise()],
    ids=lambda loss: type(loss).__name__,
)
def test_float32_finds_the_float64_gradient_of_a_real_vocabulary(loss):
    rng = torch.Generator().manual_seed(0)
    student, teacher = (4 * torch.randn(2, 128_256, generator=rng, dtype=torch.float64) for _ in range(2))
    leaf = student.requires_grad_()
    wide = {"student": leaf.log_softmax(-1), "teacher": teacher.log_softmax(-1)}
    wide |= {"labels": torch.tensor([5, 70_000]), "progress": torch.tensor(0.25)}
    expected = call(loss.token_loss, wide)
    expected.sum().backward()
    narrow = {key: tensor.detach().float() if tensor.is_floating_point() else tensor for key, tensor in wide.items()}
    found, gradient = call(loss.token_gradient, narrow)
    assert_allclose(found, expected.detach(), rtol=1e-6)
    assert (gradient - leaf.grad).norm() < 2e-5 * leaf.grad.norm()


@pytest.mark.parametrize("loss", [ConcreteScore(w1="teacher", w2="uniform"), DistiLLM2(gradual_beta=True)])
def test_properties_of_every_loss_hold_with_other_options(loss):
    check_loss(loss, max_examples=10)


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (DecoupledKL, {"alpha": -0.1}),
        (DecoupledKL, {"beta": float("inf")}),
        (DecoupledKL, {"temperature": 0.0}),
        (ConcreteScore, {"w1": "both"}),
        (ConcreteScore, {"w2": "both"}),
        (ConcreteScore, {"temperature": -1.0}),
        (DistiLLM2, {"alpha": 0.0}),
        (DistiLLM2, {"alpha": float("nan")}),
        (Listwise, {"k": 0}),
        (Pairwise, {"k": 1}),
        (Pairwise, {"surrogate": "exponential"}),
        (Pairwise, {"margin": -1.0}),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(loss, options):
    (name,) = options
    with pytest.raises(ValueError, match=rf"^{name} is .*, but must"):
        loss(**options)
