"""Liger computes the softmax in bfloat16: near p = q its gradient has a relative error of a fifth."""

import torch

from neoplug.models.head import Head
from neoplug.models.vocabulary import Vocabulary
from neoplug.teachers.signals import StatesSignal
from neoplug.training.objective import objective
from neoplug_losses.forward_kl import ForwardKL

N, H, V = 64, 64, 2048


def pair():
    """Return bf16 hidden states and heads of a student that is close to its teacher, and of the teacher."""
    rng = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(N, H, generator=rng), torch.randn(V, H, generator=rng) / 4
    near = hidden + 0.05 * torch.randn(N, H, generator=rng)
    return [tensor.bfloat16() for tensor in (near, weight, hidden, weight)]


def gradient(hidden, weight, theirs, their_weight, dtype, softmax):
    """Return the gradient of the forward KL by the hidden states; `softmax` is the dtype of the softmax."""
    hidden = hidden.to(dtype, copy=True).requires_grad_()
    log_q = torch.log_softmax((hidden @ weight.to(dtype).t()).to(softmax), -1)
    log_p = torch.log_softmax((theirs.to(dtype) @ their_weight.to(dtype).t()).to(softmax), -1)
    (log_p.exp() * (log_p - log_q)).sum().backward()
    return hidden.grad.double()


def error(found, exact):
    return ((found - exact).norm() / exact.norm()).item()


def test_the_gradient_close_to_the_teacher_is_exact(losses):
    student, weight, teacher, their_weight = pair()
    exact = gradient(student, weight, teacher, their_weight, torch.float64, torch.float64)
    naive = error(gradient(student, weight, teacher, their_weight, torch.bfloat16, torch.bfloat16), exact)

    def head(rows):
        layer = torch.nn.Linear(H, V, bias=False, dtype=torch.bfloat16).requires_grad_(False)
        layer.weight.data.copy_(rows)
        return Head(layer, Vocabulary(V))

    hidden = student.clone().requires_grad_()
    signal = StatesSignal(teacher, head(their_weight))
    named = losses(forward_kl=(1.0, ForwardKL()))
    total, values = objective(named, hidden, head(weight), signal, torch.zeros(N).long(), 0.0)
    total.backward()
    ours = error(hidden.grad.double(), exact)
    print(f"relative gradient error: all in bf16 {naive:.4f}, ours {ours:.4f}")
    assert values.mean() < 0.05
    assert hidden.grad.dtype == torch.bfloat16
    assert ours < 2**-8  # the rounding of the result to bfloat16
    assert naive > 20 * ours
