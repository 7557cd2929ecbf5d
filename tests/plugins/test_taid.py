"""TAID: its target, the update of t against plain floats, and t after a resume."""

import io
from math import exp

import pytest
import torch
from hypothesis import given, settings
from numpy.testing import assert_allclose
from scipy.special import rel_entr, softmax

from neoplug.testing import examples, value
from neoplug_losses.forward_kl import ForwardKL
from neoplug_losses.taid import TAID

LOSSES = [2.0, 1.5, 1.6, 0.0, 0.4, 0.2, 0.1]  # nats per token, step after step


def run_steps(loss, losses, first=0, answers=5):
    """End a step for each of these losses; return the t of each."""
    found = []
    for step, nats in enumerate(losses, first):
        metrics = {"losses": {"taid@x": torch.tensor(nats)}, "counts": torch.tensor([answers, 9])}
        found.append(loss.on_step_end(step / (len(LOSSES) - 1), metrics, "taid@x")["taid@x_t"].item())
    return found


@settings(deadline=None, max_examples=30)
@given(examples())
def test_the_target_interpolates_the_logits(example):
    z_p, z_q = (z.double().numpy() for z in (example.teacher, example.student))
    for temperature in (1.0, 2.5):
        t = 0.2 + 0.5 * example.progress
        r = softmax(((1 - t) * z_q + t * z_p) / temperature, -1)
        expected = temperature**2 * rel_entr(r, softmax(z_q / temperature, -1)).sum(-1)
        assert_allclose(value(TAID(temperature, t_start=0.2, t_end=0.7), example), expected, rtol=1e-5, atol=1e-4)


def test_it_ends_as_forward_kl():
    log_p, log_q = torch.randn(2, 4, 11, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    found, expected = TAID(2.0).token_gradient(log_q, log_p, 1.0), ForwardKL(2.0).token_gradient(log_q, log_p)
    for have, want in zip(found, expected, strict=True):
        assert_allclose(have, want, atol=1e-6)


def test_t_follows_the_update_of_the_paper():
    t, momentum, before, expected = 0.4, 0.0, None, []
    for step, loss in enumerate(LOSSES):
        t = min(1.0, max(t, 0.4 + 0.6 * step / (len(LOSSES) - 1)))
        expected.append(t)
        if before is not None:
            momentum = 0.9 * momentum + 0.1 * (before - loss) / (before + 1e-15)
            t += 0.3 * (1 / (1 + exp(-momentum)) if momentum > -700 else 0.0) * (1 - t)
        before = loss
    found = run_steps(TAID(alpha=0.3, beta=0.9), LOSSES)
    assert_allclose(found, expected, rtol=1e-6)
    assert found[2] > 0.4 + 0.6 * 2 / 6  # ahead of the linear schedule, so the update has an effect


def test_without_alpha_t_is_linear_in_progress():
    assert_allclose(run_steps(TAID(alpha=0.0), LOSSES), [0.4 + 0.1 * step for step in range(7)], rtol=1e-6)


def test_a_step_without_answer_tokens_changes_t_only_linearly():
    loss = TAID(alpha=0.3)
    before = run_steps(loss, LOSSES[:3])
    kept = loss.state_dict()
    assert run_steps(loss, [0.0], first=3, answers=0)[0] > before[-1]
    assert loss.state_dict()["before"] == kept["before"]
    assert loss.state_dict()["momentum"] == kept["momentum"]
    untouched = TAID(alpha=0.3)
    run_steps(untouched, [0.0], answers=0)
    assert untouched.state_dict()["before"].isinf()


def test_a_resumed_t_is_the_same_t():
    whole, first, then = TAID(alpha=0.3), TAID(alpha=0.3), TAID(alpha=0.3)
    expected = run_steps(whole, LOSSES)
    found, file = run_steps(first, LOSSES[:3]), io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    then.load_state_dict(torch.load(file, weights_only=True))
    assert found + run_steps(then, LOSSES[3:], first=3) == expected


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"t_start": 1.0}, "t_start is .*forward_kl"),
        ({"t_end": 0.3}, "t_end is .*forward_kl"),
        ({"t_start": 0.0, "t_end": 0.0}, "t_end is"),
        ({"alpha": -0.1}, "alpha is .*linear"),
        ({"beta": 1.0}, "beta is"),
        ({"temperature": 0.0}, "temperature is"),
    ],
)
def test_an_option_out_of_range_is_refused(options, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        TAID(**options)
