"""Simulated ranks, for a training step on shapes: this process is the first of them, and nothing is sent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn

from neoplug.distributed.sharding import is_sharded
from neoplug.distributed.world import Value, World


class PretendedWorld(World):
    """Rank 0 of `size` simulated ranks: a collective operation returns its input, and takes the memory of a real one.

    It reads no variable of a launcher, and leaves accelerate's state as it is.

    device  of the student; None: the GPU, if there is one
    """

    def __init__(self, device: str | None, size: int) -> None:
        self.rank, self.size, self.is_main = 0, size, True
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._buckets: list[Tensor] = []

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module; unless it is sharded, several ranks average its gradients in buckets of their size."""
        if self.size > 1 and not is_sharded(module):
            self._buckets = [torch.empty_like(weight) for weight in module.parameters() if weight.requires_grad]
        return module

    @contextmanager
    def accumulating(self, module: nn.Module, last: bool) -> Iterator[None]:
        """Average the gradients of a sharded module's whole weights after the last micro-batch."""
        yield
        if last and is_sharded(module):
            self._average_gradients(module)

    def sum(self, tensor: Tensor) -> Tensor:
        """Return this rank's tensor."""
        return tensor

    def gather(self, values: list[Value]) -> list[Value]:
        """Return this rank's values."""
        return values


@contextmanager
def pretended_ranks(size: int) -> Iterator[None]:
    """Give torch.distributed a process group of `size` simulated ranks, of which this process is the first.

    There must be no process group yet.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        yield
    finally:
        distributed.destroy_process_group()
