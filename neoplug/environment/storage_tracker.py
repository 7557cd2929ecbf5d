"""Counts the bytes of the tensors that are alive, by device, and their peak.

A storage is counted once, however many tensors view it, from the operator that returns it until it is freed; what an
operator allocates and frees inside itself is not seen. Tensors of torch's fake mode are counted as if they had data,
and of a sharded tensor this process's part.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from neoplug.environment.fake_floats import in_fake_mode

LOCAL = "_local_tensor"  # attribute of torch's DTensor, whose module takes long to import


class StorageTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts storages that operators return inside `with`, and those that `count` is given.

    now   device -> bytes of the storages that are alive
    peak  device -> the most there were since the start or the last `reset_peak`
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self._total = self._total_peak = 0
        self._alive: dict[int, tuple[weakref.ref[Any], int, str]] = {}
        self._resize, tracker = torch.UntypedStorage.resize_, self

        def resize(storage: torch.UntypedStorage, size: int) -> None:
            tracker._resize(storage, size)
            tracker._resized(storage, size)

        self._resizing = patch.object(torch.UntypedStorage, "resize_", resize)  # no operator: FSDP frees by it

    @property
    def total_peak(self) -> int:
        """The peak of all devices together."""
        return self._total_peak

    def count(self, tensors: Iterable[Tensor]) -> int:
        """Count storages that exist already; return the bytes of those that were not counted before."""
        before = self._total
        for tensor in tensors:
            self._see(tensor)
        return self._total - before

    def reset_peak(self) -> None:
        """Let the peak begin again, at the storages that are alive."""
        self.peak, self._total_peak = Counter(self.now), self._total

    def __enter__(self) -> StorageTracker:
        """Begin to count."""
        self._resizing.start()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        """Count no more what is allocated or resized."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._resizing.stop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count the storages of what it returns."""
        if any(hasattr(kind, LOCAL) for kind in types):
            return NotImplemented  # a sharded tensor runs operators on its parts, which come here
        if in_fake_mode():
            return func(*args, **(kwargs or {}))
        returned = func(*args, **(kwargs or {}))
        for value in [returned] if isinstance(returned, Tensor) else tree_iter(returned):
            if isinstance(value, Tensor):
                self._see(value)
        return returned

    def _see(self, tensor: Tensor) -> None:
        """Count the storage of a tensor, or what it has grown by."""
        try:
            storage = local_part(tensor).untyped_storage()
        except NotImplementedError:  # a sparse tensor has none
            return
        key, size = storage._cdata, storage.nbytes()
        known = self._alive.get(key)
        if known is not None and known[1] == size:
            return
        device = str(tensor.device)
        reference = known[0] if known else weakref.ref(storage, partial(self._freed, key))
        self._alive[key] = reference, size, device
        self._add(device, size - (known[1] if known else 0))

    def _resized(self, storage: torch.UntypedStorage, size: int) -> None:
        known = self._alive.get(storage._cdata)
        if known is not None:
            self._alive[storage._cdata] = known[0], size, known[2]
            self._add(known[2], size - known[1])

    def _freed(self, key: int, reference: weakref.ref[Any]) -> None:
        known = self._alive.get(key)
        if known is not None and known[0] is reference:
            del self._alive[key]
            self._add(known[2], -known[1])

    def _add(self, device: str, size: int) -> None:
        self.now[device] += size
        self._total += size
        if size > 0:
            self.peak[device] = max(self.peak[device], self.now[device])
            self._total_peak = max(self._total_peak, self._total)


def tensors_of(module: torch.nn.Module) -> list[Tensor]:
    """Return the parameters and buffers of a module, and what weights in 4 or 8 bits have with them."""
    found = [*module.parameters(), *module.buffers()]
    of_4_bits = [vars(weight).get("quant_state") for weight in module.parameters()]
    of_8_bits = [getattr(getattr(part, "state", None), "SCB", None) for part in module.modules()]
    inner = [value for state in of_4_bits if state is not None for value in _tensors_in(state)]
    return [*found, *inner, *(scales for scales in of_8_bits if scales is not None)]


def local_part(tensor: Tensor) -> Tensor:
    """Return this process's part of a sharded tensor, and any other as it is."""
    part: Tensor = getattr(tensor, LOCAL, tensor)
    return part


def _tensors_in(state: Any) -> list[Tensor]:
    """Return the tensors of a quantisation state, which may hold a second one of its scales."""
    values = list(vars(state).values())
    nested = [value for value in values if hasattr(value, "absmax")]
    return [v for v in values if isinstance(v, Tensor)] + [t for inner in nested for t in _tensors_in(inner)]
