"""Built-in divergences: values against float64 definitions by scipy, limits, inequalities, refusals."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from numpy.testing import assert_allclose
from scipy.special import entr, rel_entr, softmax

from neoplug.testing import Example, call, check_closed_form, check_finite_differences, examples, value
from neoplug_losses.adaptive_kl import AdaptiveKL
from neoplug_losses.alpha_beta import AlphaBeta
from neoplug_losses.cross_entropy import CrossEntropy
from neoplug_losses.forward_kl import ForwardKL
from neoplug_losses.hellinger import Hellinger
from neoplug_losses.jeffreys import Jeffreys
from neoplug_losses.jsd import JensenShannon
from neoplug_losses.renyi import Renyi
from neoplug_losses.reverse_kl import ReverseKL
from neoplug_losses.skew_forward_kl import SkewForwardKL
from neoplug_losses.skew_reverse_kl import SkewReverseKL
from neoplug_losses.total_variation import TotalVariation

quick = settings(deadline=None, max_examples=30)


def kl(p, q):
    return rel_entr(p, q).sum(-1)


def alpha_beta(p, q, a, b):
    return -(p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)).sum(-1) / (a * b)


def adaptive_kl(p, q, mu):
    """Add tokens to the head by falling probability until mu is reached, and then all equally likely ones."""
    found = []
    for row_p, row_q in zip(p, q, strict=True):
        head, mass, last = [], 0.0, None
        for token in np.argsort(-row_p):
            if mass >= mu and row_p[token] != last:
                break
            head.append(token)
            mass, last = mass + row_p[token], row_p[token]
        gaps = np.abs(row_p - row_q)
        share = gaps[head].sum() / max(gaps.sum(), 1e-300)
        found.append(share * kl(row_p, row_q) + (1 - share) * kl(row_q, row_p))
    return np.array(found)


# class -> (options, definition by float64 probabilities [N, V])
DEFINITIONS = {
    Jeffreys: ({"forward_share": 0.3}, lambda p, q: 0.3 * kl(p, q) + 0.7 * kl(q, p)),
    SkewForwardKL: ({"alpha": 0.2}, lambda p, q: kl(p, 0.2 * p + 0.8 * q)),
    SkewReverseKL: ({"alpha": 0.2}, lambda p, q: kl(q, 0.8 * p + 0.2 * q)),
    AlphaBeta: ({"alpha": 0.3, "beta": 0.9}, lambda p, q: alpha_beta(p, q, 0.3, 0.9)),
    TotalVariation: ({}, lambda p, q: np.abs(p - q).sum(-1) / 2),
    Hellinger: ({}, lambda p, q: 1 - np.sqrt(p * q).sum(-1)),
    Renyi: ({"alpha": 0.7}, lambda p, q: np.log((p**0.7 * q**0.3).sum(-1)) / -0.3),
    AdaptiveKL: ({"mu": 0.6}, lambda p, q: adaptive_kl(p, q, 0.6)),
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


@quick
@given(examples())
def test_what_torchtune_and_distillm_call_forward_kl_differs_by_the_teachers_entropy(example):
    p, q = probabilities(example)
    expected = rel_entr(p, q).sum(-1) + entr(p).sum(-1)
    assert_allclose(value(ForwardKL(omit_teacher_entropy=True), example), expected, rtol=1e-5, atol=1e-5)


def test_the_gradient_does_not_depend_on_omit_teacher_entropy():
    log_p, log_q = pairs()
    found, expected = (ForwardKL(2.0, omit).token_gradient(log_q, log_p)[1] for omit in (True, False))
    assert torch.equal(found, expected)


@quick
@given(examples())
def test_a_swapped_beta_changes_the_mixture_but_not_the_weights(example):
    p, q = probabilities(example)
    m = 0.8 * p + 0.2 * q
    expected = 0.2 * kl(p, m) + 0.8 * kl(q, m)
    assert_allclose(value(JensenShannon(beta=0.2, swap_beta=True), example), expected, rtol=1e-5, atol=1e-5)


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


def test_alpha_beta_has_the_kls_as_limits_and_four_times_hellinger_between():
    log_p, log_q = pairs()
    for options, factor, limit in (
        ({"alpha": 1.0, "beta": 0.0}, 1, ForwardKL()),
        ({"alpha": 0.0, "beta": 1.0}, 1, ReverseKL()),
        ({"alpha": 0.5, "beta": 0.5}, 4, Hellinger()),
    ):
        found, expected = AlphaBeta(**options).token_gradient(log_q, log_p), limit.token_gradient(log_q, log_p)
        for have, want in zip(found, expected, strict=True):
            assert_allclose(have, factor * want, rtol=1e-6, atol=1e-9)


def test_alpha_beta_has_its_limit_where_a_power_is_0():
    p, q = (log.exp().numpy() for log in pairs())
    found = AlphaBeta(alpha=0.4, beta=0.0).token_loss(*reversed([torch.tensor(x).log() for x in (p, q)]))
    expected = (p**0.4 * np.log(p**0.4 / q**0.4) - p**0.4 + q**0.4).sum(-1) / 0.4**2  # Cichocki et al., equation 20
    assert_allclose(found, expected, rtol=1e-6)


def test_renyi_grows_with_its_order_and_passes_forward_kl_at_order_1():
    log_p, log_q = pairs()
    orders = [0.01, 0.3, 0.5, 0.99, None, 1.01, 2.0, 5.0, 400.0]
    found = np.stack([(Renyi(alpha=a) if a else ForwardKL()).token_loss(log_q, log_p).numpy() for a in orders])
    assert (np.diff(found, axis=0) > 0).all()
    assert_allclose(found[2], -2 * torch.log1p(-Hellinger().token_loss(log_q, log_p)))
    assert_allclose(found[-1], (log_p - log_q).amax(-1), rtol=0.02)
    assert_allclose(found[0] / 0.01, ReverseKL().token_loss(log_q, log_p), rtol=0.05)


@quick
@given(examples())
def test_distances_satisfy_le_cams_and_pinskers_inequalities(example):
    distance, squared = value(TotalVariation(), example), value(Hellinger(), example)
    rounding = 1e-6
    assert (squared <= distance + rounding).all()
    assert (distance**2 <= squared * (2 - squared) + rounding).all()
    assert (distance <= 1 + rounding).all()
    assert (distance**2 <= value(ForwardKL(), example) / 2 + rounding).all()


def test_the_gradient_of_total_variation_is_0_where_an_entry_agrees():
    log_p = torch.tensor([[0.5, 0.3, 0.2]]).log()
    log_q = torch.tensor([[0.5, 0.2, 0.3]]).log()
    _, gradient = TotalVariation().token_gradient(log_q, log_p)
    assert_allclose(gradient[0], np.array([0.5, 0.2, 0.3]) * (np.array([0, -1, 1]) - 0.1) / 2, atol=1e-7)


def test_the_gradient_of_total_variation_is_that_of_its_value_away_from_kinks():
    teacher, student = pairs()
    assert (teacher.exp() - student.exp()).abs().min() > 1e-4
    check_finite_differences(TotalVariation(), Example(student, teacher, torch.zeros(6, dtype=torch.int64)))


@pytest.mark.parametrize(
    ("mu", "head"),
    [(0.05, [1]), (0.39, [1]), (0.41, [1, 3]), (0.69, [1, 3]), (0.71, [1, 3, 0, 2]), (0.99, [1, 3, 0, 2])],
)
def test_the_token_that_crosses_mu_and_equally_likely_tokens_are_in_the_head(mu, head):
    p, q = np.array([0.15, 0.4, 0.15, 0.3]), np.array([0.1, 0.2, 0.3, 0.4])
    found = AdaptiveKL(mu=mu).token_loss(*(torch.tensor(x).log()[None] for x in (q, p)))
    share = np.abs(p - q)[head].sum() / np.abs(p - q).sum()
    assert found.item() == pytest.approx(share * kl(p, q) + (1 - share) * kl(q, p))


def test_adaptive_kl_does_not_differentiate_its_weights():
    log_p, log_q = pairs()
    loss = AdaptiveKL()
    forward, by_forward = ForwardKL().token_gradient(log_q, log_p)
    reverse, by_reverse = ReverseKL().token_gradient(log_q, log_p)
    share = (loss.token_loss(log_q, log_p) - reverse) / (forward - reverse)
    assert ((share > 0) & (share < 1)).all()
    expected = share[:, None] * by_forward + (1 - share[:, None]) * by_reverse
    assert_allclose(loss.token_gradient(log_q, log_p)[1], expected, atol=1e-9)


@pytest.mark.parametrize(
    "loss", [AlphaBeta(alpha=0.0, beta=0.7), AlphaBeta(alpha=1.5, beta=0.0), JensenShannon(beta=0.2, swap_beta=True)]
)
def test_closed_forms_hold_with_a_power_of_0_and_with_a_swapped_beta(loss):
    @quick
    @given(examples())
    def holds(example):
        check_closed_form(loss, example)
        check_finite_differences(loss, example)

    holds()


@pytest.mark.parametrize(
    ("cls", "options", "limits"),
    [
        (AlphaBeta, {"beta": 1e-3}, "forward_kl, .* reverse_kl"),
        (AlphaBeta, {"alpha": float("inf")}, "forward_kl, .* reverse_kl"),
        (Renyi, {"alpha": 1.0}, "forward_kl"),
        (Renyi, {"alpha": 0.0}, "forward_kl"),
        (AdaptiveKL, {"mu": 1.0}, "forward_kl"),
        (CrossEntropy, {"label_smoothing": 1.0}, "no effect"),
        (Jeffreys, {"forward_share": 1.0}, "reverse_kl and forward_kl"),
        (SkewForwardKL, {"alpha": 0.0}, "forward_kl"),
        (SkewReverseKL, {"alpha": float("nan")}, "reverse_kl"),
    ],
)
def test_an_option_out_of_range_is_refused_and_the_limit_is_named(cls, options, limits):
    (name,) = options
    with pytest.raises(ValueError, match=rf"^{name} is .*{limits}"):
        cls(**options)


def test_two_powers_of_0_are_refused():
    with pytest.raises(ValueError, match=r"^alpha is 0 and so is beta.*logit_mse"):
        AlphaBeta(alpha=0.0, beta=0.0)


@each
def test_gradients_are_fresh_tensors(cls):
    """The objective may overwrite what a loss returns, so it must not alias an input."""
    log_p, log_q = (torch.randn(2, 5).log_softmax(-1) for _ in range(2))
    for temperature in (1.0, 2.0):
        given_back = cls(temperature).token_gradient(log_q, log_p)
        inputs = {log_p.untyped_storage().data_ptr(), log_q.untyped_storage().data_ptr()}
        assert not inputs & {tensor.untyped_storage().data_ptr() for tensor in given_back}
