"""A mode in which tensors of floats have shapes but no data, so that a step of any size runs in little memory.

Torch's own fake mode (`torch._subclasses.fake_tensor`) has no values at all. A step reads some on the host: lengths of
documents, labels, counters of optimizers, tables of a quantisation. Integers of small tensors, single numbers, and
evenly spaced floats therefore keep their values here, if they do not depend on a tensor without data; all other tensors
are those of torch's fake mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

LARGEST = 2**20  # numbers of an integer tensor that keeps its values


class FakeFloats(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside `with`, new tensors of floats and large ones have no data; tensors made before are as they are."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._apply = patch.object(nn.Module, "_apply", _apply)

    def __enter__(self) -> FakeFloats:
        """Enter the mode; modules then convert their weights in place, as they do with data."""
        self._apply.start()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        """Leave the mode."""
        try:
            super().__exit__(*error)  # type: ignore[no-untyped-call]
        finally:
            self._apply.stop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator on shapes where an input has no data or the result would not keep its values."""
        kwargs = kwargs or {}
        if in_fake_mode():
            return func(*args, **kwargs)
        tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
        if func is torch.ops.aten.set_.source_Storage and isinstance(args[0], FakeTensor):
            with in_kernel_invocation_manager(self._fake):  # torch's fake mode would keep the storage for ever
                func(*args)
            return args[0]
        if any(isinstance(tensor, FakeTensor) for tensor in tensors):
            return func(*args, **kwargs)  # they dispatch to torch's fake mode themselves
        device = kwargs.get("device")
        leaves_cpu = device is not None and torch.device(device).type != "cpu"
        if tensors and not leaves_cpu and func is not torch.ops.aten.lift_fresh.default:
            return func(*args, **kwargs)
        with self._fake:
            shaped = func(*args, **kwargs)
        if not isinstance(shaped, Tensor):
            return func(*args, **kwargs)
        floats = shaped.is_floating_point() and shaped.numel() != 1 and func is not torch.ops.aten.linspace.default
        return shaped if leaves_cpu or floats or shaped.numel() > LARGEST else func(*args, **kwargs)


def in_fake_mode() -> bool:
    """Return whether a fake mode of torch's own is active, in which a sharded tensor computes the shape of a result."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None


def _apply(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Do what `Module._apply` does, which would swap tensors without data for others: not where they are referenced."""
    for child in module.children() if recurse else ():
        child._apply(function)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for weight in module._parameters.values():
            if weight is not None:
                weight.data = function(weight)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else function(buffer)
    return module
