"""Liger and axolotl compute a gradient of the head's size for a head that is frozen."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from neoplug.models.head import Head
from neoplug.models.vocabulary import Vocabulary
from neoplug.teachers.signals import StatesSignal
from neoplug.training.objective import objective
from neoplug_losses.forward_kl import ForwardKL

N, H, V = 5, 8, 23


class Shapes(TorchDispatchMode):
    """Records the shapes of all tensors that operations return, without views."""

    def __init__(self, known):
        super().__init__()
        self.known, self.seen = {tensor.untyped_storage().data_ptr() for tensor in known}, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **kwargs or {})
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.seen.add(tuple(sorted(tensor.shape)))
        return made


@pytest.mark.parametrize("trainable", [False, True])
def test_only_a_trainable_head_has_a_gradient(losses, trainable):
    layers = [torch.nn.Linear(H, V, bias=False).requires_grad_(False) for _ in range(2)]
    layers[0].requires_grad_(trainable)
    ours, theirs = (Head(layer, Vocabulary(V)) for layer in layers)
    states = torch.randn(N, H, requires_grad=True)
    named, labels = losses(forward_kl=(1.0, ForwardKL())), torch.zeros(N).long()
    with Shapes(layer.weight for layer in layers) as shapes:
        total, _ = objective(named, states, ours, StatesSignal(torch.randn(N, H), theirs), labels, 0.0)
        total.backward()
    assert (N, V) in shapes.seen
    assert states.grad.norm() > 0
    assert ((H, V) in shapes.seen) == trainable
    assert (layers[0].weight.grad is not None) == trainable
