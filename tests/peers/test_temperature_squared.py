"""axolotl multiplies the logged loss by the squared temperature, but not its gradient; TRL multiplies neither."""

import pytest
import torch
from torch.nn import functional

from neoplug.models.head import Head
from neoplug.models.vocabulary import Vocabulary
from neoplug.teachers.signals import StatesSignal
from neoplug.training.objective import objective
from neoplug_losses.forward_kl import ForwardKL
from neoplug_losses.jsd import JensenShannon
from neoplug_losses.reverse_kl import ReverseKL

N, V = 7, 50
identity = torch.nn.Linear(V, V, bias=False).requires_grad_(False)
identity.weight.data.copy_(torch.eye(V))
HEAD = Head(identity, Vocabulary(V))  # hidden states are logits


@pytest.fixture
def logits():
    return 3 * torch.randn(2, N, V, generator=torch.Generator().manual_seed(0))


def value_and_gradient(loss, logits, losses):
    student, teacher = logits[0].clone().requires_grad_(), logits[1]
    total, _ = objective(
        losses(loss=(1.0, loss)), student, HEAD, StatesSignal(teacher, HEAD), torch.zeros(N).long(), 0.0
    )
    total.backward()
    return total.detach(), student.grad


@pytest.mark.parametrize("temperature", [2.0, 4.0])
def test_value_and_gradient_have_the_squared_temperature(logits, losses, temperature):
    value, gradient = value_and_gradient(ForwardKL(temperature), logits, losses)
    student = logits[0].double().requires_grad_()
    log_q, log_p = (z.log_softmax(-1) for z in (student / temperature, logits[1].double() / temperature))
    expected = temperature**2 * functional.kl_div(log_q, log_p, log_target=True, reduction="sum")
    expected.backward()
    torch.testing.assert_close(value.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), student.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("plugin", [ForwardKL, ReverseKL, JensenShannon])
def test_the_gradient_keeps_its_scale_at_high_temperature(logits, losses, plugin):
    """Hinton's limit: T^2 times the divergence tends to half the mean square of centred logit differences."""
    centred = logits - logits.mean(-1, keepdim=True)
    share = 0.25 if plugin is JensenShannon else 1.0  # beta (1 - beta) of both KLs' curvature
    _, gradient = value_and_gradient(plugin(temperature=1000.0), logits, losses)
    torch.testing.assert_close(gradient, share * (centred[0] - centred[1]) / V, rtol=0.05, atol=2e-3)
