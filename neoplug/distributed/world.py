"""The processes of a run: rank, device, gradient averaging and collective operations, by accelerate."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.distributed import is_initialized
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from neoplug.distributed.notices import Notices
from neoplug.distributed.processes import Process
from neoplug.distributed.restarts import attempt, join_attempt
from neoplug.distributed.sharding import is_sharded
from neoplug.errors import RunError

Value = TypeVar("Value")
LAUNCH = "fix: start several processes with `torchrun --nproc-per-node N -m neoplug run ...`"


class World:
    """The processes of a run, by rank: rank, device and collective operations of this one.

    device   device of the student; None: accelerate chooses
    timeout  seconds in which all processes must take part in a collective operation

    Raises:
        RunError: the launcher's environment variables are incomplete, or do not match the number of processes.
    """

    def __init__(self, device: str | None = None, timeout: int = 1800) -> None:
        self.timeout = timeout
        if "WORLD_SIZE" not in os.environ:  # an earlier run in this process may have used another device
            AcceleratorState._reset_state(reset_partial_state=True)
        on_cpu, limit = device == "cpu" or not _has_gpu(), timedelta(seconds=timeout)
        if attempt() > 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and not is_initialized():
            join_attempt("gloo" if on_cpu else "nccl", limit)
        try:
            # neoplug applies autocast itself, so the precision of a launcher's configuration must not apply.
            handlers = [InitProcessGroupKwargs(timeout=limit)]
            self.accelerator = Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=handlers)
        except ValueError as error:  # only some of a launcher's variables are set
            raise RunError(f"this process cannot join the others: {error}\n{LAUNCH}") from error
        self.rank = self.accelerator.process_index
        self.size = self.accelerator.num_processes
        self.device = torch.device(device) if device else self.accelerator.device
        self.is_main = self.accelerator.is_main_process
        expected = int(os.environ.get("WORLD_SIZE", "1"))
        if expected != self.size:
            raise RunError(
                f"the launcher set WORLD_SIZE to {expected}, but this process is one of {self.size}\n" + LAUNCH
            )
        self.notices = Notices(self.rank, self.size)
        self.processes = self.gather([Process.own(self.rank)])

    @cached_property
    def mesh(self) -> DeviceMesh:
        """All ranks in one dimension, over which weights are sharded."""
        return init_device_mesh(self.device.type, (self.size,))

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module, wrapped so that backward averages gradients over ranks.

        Unwrapped in a single process, and where it is sharded: `accumulating` then averages.
        """
        return module if self.size == 1 or is_sharded(module) else self.accelerator.prepare_model(module)

    @contextmanager
    def accumulating(self, module: nn.Module, last: bool) -> Iterator[None]:
        """Backward in this context averages gradients over ranks only if `last`: in the last micro-batch of a step.

        Gradients of sharded weights are averaged in each micro-batch, since no rank holds them whole.
        """
        if self.size > 1 and is_sharded(module):
            yield
            if last:
                self._average_gradients(module)
        elif last or self.size == 1:
            yield
        else:
            with self.accelerator.no_sync(module):
                yield

    def _average_gradients(self, module: nn.Module) -> None:
        """Average the gradients of trainable weights that are whole on each rank; one without gradient counts as 0."""
        weights = [weight for weight in module.parameters() if weight.requires_grad and not isinstance(weight, DTensor)]
        if not weights:
            return
        gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        averages = self.sum(torch.cat([gradient.flatten() for gradient in gradients])) / self.size
        for weight, average in zip(weights, averages.split([weight.numel() for weight in weights]), strict=True):
            weight.grad = average.view_as(weight)

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of the ranks' tensors, on every rank."""
        return tensor if self.size == 1 else self.accelerator.reduce(tensor, "sum")

    def gather(self, values: list[Value]) -> list[Value]:
        """Return the values of all ranks, concatenated in the order of ranks, on every rank."""
        return values if self.size == 1 else gather_object(values)

    def broadcast(self, value: Value) -> Value:
        """Return the main process's `value` on every rank."""
        values = [value]
        if self.size > 1:
            broadcast_object_list(values)
        return values[0]

    def end(self) -> None:
        """Leave the process group."""
        if self.size > 1:
            self.accelerator.end_training()

    def wait(self) -> None:
        """Wait until all ranks reach this point."""
        self.accelerator.wait_for_everyone()


@contextmanager
def accelerate_state_restored() -> Iterator[None]:
    """Restore accelerate's process-global state on exit, but not under a launcher, whose processes stay connected."""
    shared = () if "WORLD_SIZE" in os.environ else (PartialState, AcceleratorState, GradientState)
    before = [dict(state._shared_state) for state in shared]
    try:
        yield
    finally:
        for state, kept in zip(shared, before, strict=True):
            state._shared_state.clear()
            state._shared_state.update(kept)


def _has_gpu() -> bool:
    """Return whether there is a GPU with float64; Apple GPUs have none, so a Mac trains on its CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator is not None and accelerator.type != "mps"
