"""The world a run lives in: its ranks, its device, and sums over ranks. accelerate does the work."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

from neoplug.errors import RunError

Value = TypeVar("Value")
LAUNCH = "fix: start several processes with `torchrun --nproc-per-node N -m neoplug run ...`"


class World:
    """All processes of a run; the main one writes.

    device  where the student trains; None is the accelerator's choice

    Raises:
        RunError: the launcher promised more processes than came together.
    """

    def __init__(self, device: str | None = None) -> None:
        if "WORLD_SIZE" not in os.environ:  # an earlier run of this process may have chosen another device
            AcceleratorState._reset_state(reset_partial_state=True)
        try:
            # The core casts by itself, so whatever a launcher's configuration says of precision must not.
            self.accelerator = Accelerator(cpu=device == "cpu" or not _has_gpu(), mixed_precision="no")
        except ValueError as error:  # a launcher's variables, but not all of them
            raise RunError(f"this process cannot join the others: {error}\n{LAUNCH}") from error
        self.rank = self.accelerator.process_index
        self.size = self.accelerator.num_processes
        self.device = torch.device(device) if device else self.accelerator.device
        self.is_main = self.accelerator.is_main_process
        promised = int(os.environ.get("WORLD_SIZE", "1"))
        if promised != self.size:
            raise RunError(
                f"the launcher promised {promised} processes, but this one runs in a world of {self.size}\n" + LAUNCH
            )

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module with gradients averaged over ranks in its backward; a lone process needs no wrapper."""
        return module if self.size == 1 else self.accelerator.prepare_model(module)

    @contextmanager
    def accumulating(self, module: nn.Module, last: bool) -> Iterator[None]:
        """Keep gradients local until the last micro-batch of a step."""
        if last or self.size == 1:
            yield
        else:
            with self.accelerator.no_sync(module):
                yield

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over ranks."""
        return tensor if self.size == 1 else self.accelerator.reduce(tensor, "sum")

    def gather(self, values: list[Value]) -> list[Value]:
        """Return the values of all ranks, in the order of ranks."""
        return values if self.size == 1 else gather_object(values)

    def agree(self, value: Value) -> Value:
        """Return what the main process says, on every rank."""
        said = [value]
        if self.size > 1:
            broadcast_object_list(said)
        return said[0]

    def end(self) -> None:
        """Take leave of the other ranks."""
        if self.size > 1:
            self.accelerator.end_training()

    def wait(self) -> None:
        """Wait until all ranks are here."""
        self.accelerator.wait_for_everyone()


def _has_gpu() -> bool:
    """Tell whether there is a GPU that knows float64: an Apple GPU does not, so a Mac trains on its CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator is not None and accelerator.type != "mps"
