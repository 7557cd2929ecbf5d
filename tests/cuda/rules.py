"""CUDA's rules on tensors of the pretended device, and the operators that stand in for its kernels.

`test_rules.py` runs these tests in a process that has loaded the library of the pretended device before torch.
"""

import accelerate  # noqa: F401
import bitsandbytes  # noqa: F401
import peft  # noqa: F401
import pytest
import torch
import torch._inductor.utils

from tests.cuda import emulated, waits
from tests.cuda.patches import pretended_gpu

WAITS = {
    "item": lambda tensor: tensor.sum().item(),
    "bool": lambda tensor: bool((tensor > 0).all()),
    "tolist": lambda tensor: tensor.tolist(),
    "text": lambda tensor: f"{tensor} {tensor.sum():.3f}",
    "to the host": lambda tensor: tensor.cpu(),
    "to the host, too early": lambda tensor: tensor.to("cpu", non_blocking=True),
    "into a tensor of the host": lambda tensor: torch.zeros(2, 3).copy_(tensor),
    "to the device": lambda _: torch.ones(2).to("cuda"),
    "into a tensor of the device": lambda tensor: tensor.copy_(torch.zeros(2, 3)),
    "made of a list": lambda _: torch.tensor([1, 2], device="cuda"),
    "mask as an index": lambda tensor: tensor[tensor > 0],
    "index on the host": lambda tensor: tensor[torch.tensor([0, 1])],
    "nonzero": lambda tensor: torch.where(tensor > 0),
    "equal": lambda tensor: torch.equal(tensor, tensor),
    "unique": lambda tensor: tensor.unique(),
    "repeated by a tensor": lambda tensor: tensor.repeat_interleave(torch.ones(2, dtype=torch.int64, device="cuda"), 0),
    "synchronize": lambda _: torch.cuda.synchronize(),
}
NO_WAITS = {
    "made on the device": lambda _: torch.full((2,), 3.0, device="cuda") + torch.arange(2, device="cuda"),
    "to the device": lambda _: torch.ones(2).to("cuda", non_blocking=True),
    "into a tensor of the device": lambda tensor: tensor.copy_(torch.zeros(2, 3), non_blocking=True),
    "index on the device": lambda tensor: tensor[torch.arange(2, device="cuda")],
    "a number of the host": lambda tensor: tensor * torch.tensor(2.0) + 1,
    "chosen by a mask": lambda tensor: torch.where(tensor > 0, tensor, 0.0).masked_fill(tensor > 1, torch.tensor(1.0)),
    "repeated by a number": lambda tensor: tensor.repeat_interleave(2, 0),
    "a type": lambda tensor: tensor.to(torch.float64).float(),
}
REFUSED = {
    "a sum": lambda tensor: tensor + torch.ones(3),
    "a product": lambda tensor: tensor @ torch.ones(3, 2),
    "a list": lambda tensor: torch.stack([tensor[0, 0], torch.tensor(1.0)]),
    "rows": lambda tensor: tensor.index_select(0, torch.tensor([0])),
    "lists of tensors": lambda tensor: torch._foreach_add([tensor, tensor], [tensor, torch.ones(2, 3)]),
    "draws": lambda _: torch.rand(2, device="cuda", generator=torch.Generator()),
    "numpy": lambda tensor: tensor.numpy(),
}


@pytest.fixture
def tensor():
    """Return a tensor of the device; what was recorded so far is forgotten."""
    with torch.no_grad(), pretended_gpu():
        made = torch.linspace(-1, 1, 6, device="cuda").view(2, 3)
        waits.events.clear()
        yield made


def recorded():
    return [event for event in waits.events if event.kind == "wait"]


@pytest.mark.parametrize("name", WAITS)
def test_what_waits_is_recorded_with_its_caller(tensor, name):
    WAITS[name](tensor)
    assert recorded()
    assert ("race" in recorded()[0].what) == ("too early" in name)


@pytest.mark.parametrize("name", NO_WAITS)
def test_what_does_not_wait_is_not_recorded(tensor, name):
    found = NO_WAITS[name](tensor)
    assert found.is_cuda
    assert recorded() == []


@pytest.mark.parametrize("name", REFUSED)
def test_host_and_device_do_not_mix(tensor, name):
    with pytest.raises((RuntimeError, TypeError), match="cuda"):
        REFUSED[name](tensor)


def test_blocks_share_the_memory_of_a_storage(tensor):
    storage = tensor.new_empty(0).untyped_storage()
    first = tensor.new_empty(0).set_(storage).resize_(2, 2).fill_(1)
    second = tensor.new_empty(0).set_(storage).resize_(2, 2).fill_(2)
    assert first.shape == second.shape == (2, 2)
    assert first.tolist() == [[2, 2], [2, 2]]


def test_changes_in_place_reach_views_of_a_tensor(tensor):
    tensor[1].zero_()
    tensor.t_().add_(1)
    assert tensor.shape == (3, 2)
    assert tensor[:, 1].tolist() == [1, 1, 1]


@pytest.mark.parametrize("window", [(-1, 0), (3, 0)], ids=["causal", "window"])
def test_the_gradient_of_attention_by_document_is_that_of_its_definition(window):
    rng = torch.Generator().manual_seed(0)
    shapes = ((12, 4, 8), (12, 2, 8), (12, 2, 8))
    states = [torch.randn(shape, generator=rng).bfloat16() for shape in shapes]
    starts, gradient = torch.tensor([0, 5, 6, 12], dtype=torch.int32), torch.randn(shapes[0], generator=rng).bfloat16()
    leaves = [part.float().requires_grad_() for part in states]
    pieces = emulated.documents(*leaves, starts, None, window)
    expected = torch.cat([(weights @ values[2]).transpose(0, 1) for _, values, weights in pieces])
    causal = window == (-1, 0)
    output, *rest = emulated.varlen_attention(*states, starts, starts, 6, 6, causal, None, window)
    found = emulated.varlen_attention_backward(
        gradient, *states, output, rest[0], starts, starts, 6, 6, causal, rest[1], None, window
    )
    torch.testing.assert_close(output.float(), expected, rtol=1e-2, atol=1e-2)
    for part, by_definition in zip(found, torch.autograd.grad(expected, leaves, gradient.float()), strict=True):
        torch.testing.assert_close(part.float(), by_definition, rtol=1e-2, atol=1e-2)
