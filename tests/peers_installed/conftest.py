"""Comparison of neoplug with other libraries on the same random hidden states and heads.

B rows, L positions, S and T the student's and the teacher's hidden size, V vocabulary. Labels are already shifted:
the label at a position is the token that its hidden state predicts; -100 where nothing is scored.

This folder needs the extra `peers`; a plain `pytest` does not run it. A missing peer is an error, not a skip.
"""

import os
import warnings
from importlib import import_module

os.environ["TRITON_INTERPRET"] = "1"  # Liger's Triton kernels on a CPU
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the peers' imports raise warnings
    for peer in (
        "liger_kernel.transformers",
        "torchtune.modules.loss",
        "trl.experimental.gkd",
        "trl.experimental.gold",
    ):
        import_module(peer)

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

from neoplug.models.head import Head
from neoplug.models.vocabulary import Vocabulary
from neoplug.registry import Plugins
from neoplug.teachers.signals import StatesSignal
from neoplug.training.objective import Loss, objective

B, L, S, T, V = 3, 16, 12, 20, 61


def pytest_collection_modifyitems(items):
    for item in items:
        if "peers_installed" in item.path.parts:
            item.add_marker(pytest.mark.filterwarnings("ignore"))  # neoplug's other tests fail on its warnings


@pytest.fixture
def scalars(monkeypatch):
    """Pass float32 scalars to a kernel, as Triton does on a GPU; its interpreter passes Python numbers."""
    convert = interpreter._implicit_cvt

    def with_floats(value):
        if not isinstance(value, float):
            return convert(value)
        return tl.tensor(interpreter.TensorHandle(np.array([value], np.float32), tl.float32), tl.float32)

    monkeypatch.setattr(interpreter, "_implicit_cvt", with_floats)


@dataclass(frozen=True, eq=False)
class Micro:
    """A micro-batch: hidden states [B, L, S] and [B, L, T], heads [V, S] and [V, T], labels [B, L]."""

    student: Tensor
    student_head: Tensor
    teacher: Tensor
    teacher_head: Tensor
    labels: Tensor

    @property
    def teacher_logits(self) -> Tensor:
        """Return [B, L, V]."""
        return self.teacher @ self.teacher_head.t()


@dataclass(frozen=True, eq=False)
class Outcome:
    """A loss and its gradients by the student's hidden states [B, L, S] and by its head [V, S]."""

    loss: Tensor
    by_states: Tensor
    by_head: Tensor

    def agrees_with(self, other: "Outcome", rtol: float = 2e-5) -> None:
        """Raise AssertionError where value or gradients differ by more than float32 rounding."""
        torch.testing.assert_close(self.loss, other.loss, rtol=rtol, atol=1e-6)
        for mine, theirs in ((self.by_states, other.by_states), (self.by_head, other.by_head)):
            assert (mine - theirs).norm() <= rtol * theirs.norm()
            assert theirs.norm() > 1e-4


@pytest.fixture(params=[0, 1])
def micro(request):
    """Return a micro-batch whose rows have prompts and padding; the last row has one answer token, its first."""
    rng = torch.Generator().manual_seed(request.param)
    labels = torch.randint(0, V, (B, L), generator=rng)
    labels[0, :5], labels[0, 9:11], labels[1, :3], labels[1, 12:], labels[2, 1:] = -100, -100, -100, -100, -100
    sizes = ((B, L, S), (V, S), (B, L, T), (V, T))
    return Micro(*(torch.randn(size, generator=rng) for size in sizes), labels)


@pytest.fixture
def replaced():
    """Return `dataclasses.replace`, which also takes all five parts in order."""

    def change(micro: Micro, *parts: Tensor, **named: Tensor) -> Micro:
        return Micro(*parts) if parts else replace(micro, **named)

    return change


@pytest.fixture
def theirs():
    """Return a function that differentiates a peer's loss of (hidden states [B, L, S], head [V, S])."""

    def differentiate(function: Callable[[Tensor, Tensor], Tensor], micro: Micro) -> Outcome:
        states, head = micro.student.clone().requires_grad_(), micro.student_head.clone().requires_grad_()
        loss = function(states, head)
        loss.backward()
        return Outcome(loss.detach(), states.grad, head.grad)

    return differentiate


@pytest.fixture
def from_logits(theirs):
    """Return a function that differentiates a peer's loss of (student's logits, teacher's logits, labels)."""

    def differentiate(function: Callable[[Tensor, Tensor, Tensor], Tensor], micro: Micro) -> Outcome:
        return theirs(lambda states, head: function(states @ head.t(), micro.teacher_logits, micro.labels), micro)

    return differentiate


@pytest.fixture
def ours():
    """Return a function that differentiates neoplug's objective: the mean over answer tokens of weighted losses."""

    def differentiate(micro: Micro, *mix: tuple[float, object], student=None, teacher=None, tokens=None) -> Outcome:
        """`mix` holds (weight, plugin); `student` and `teacher` are options of the heads: multiplier, cap.

        The mean is over `tokens`, or those of the micro-batch. The shared vocabulary is the student's.
        """
        plugins = Plugins({"loss": {f"loss@{at}": plugin for at, (_, plugin) in enumerate(mix)}})
        values, gradients = plugins.functions("token_loss"), plugins.functions("token_gradient")
        weights = [weight for weight, _ in mix]
        named = zip(values, weights, strict=True)
        losses = [Loss(name, weight, values[name], gradients.get(name)) for name, weight in named]
        states, head = micro.student.clone().requires_grad_(), linear(micro.student_head)
        head.requires_grad_(True)
        scored = micro.labels != -100
        shared = Vocabulary(len(micro.student_head))
        signal = StatesSignal(micro.teacher[scored], Head(linear(micro.teacher_head), shared, **teacher or {}))
        trained = Head(head, shared, **student or {})
        total, _ = objective(losses, states[scored], trained, signal, micro.labels[scored], 0.0)
        mean = total / (tokens or scored.sum())
        mean.backward()
        return Outcome(mean.detach(), states.grad, head.weight.grad)

    return differentiate


def linear(weight: Tensor) -> torch.nn.Linear:
    """Return a frozen output head [V, H]."""
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype).requires_grad_(False)
    layer.weight.data.copy_(weight)
    return layer
