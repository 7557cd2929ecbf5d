"""Counts what a step would take on a GPU: each operator's products and bytes, and the memory that tensors hold.

Works on fake tensors, which have shapes, types and a device, and no values. L tokens of a document, D head dimension.
"""

import weakref
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# An H100 SXM by its data sheet, and the share of it that large kernels reach.
FLOPS = 989e12  # a second, of products in 16 bits without sparsity
FLOPS_FLOAT32 = 67e12  # without TF32
BYTES = 3.35e12  # a second
OF_FLOPS, OF_BYTES = 0.70, 0.85
OF_ATTENTION = {"_varlen_attn": 0.63, "_varlen_attn_backward": 0.49}  # softmax and rescaling between its products
LAUNCH = 2e-6  # seconds that the smallest kernel takes

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
GATHERS = ("gather", "index_select", "embedding", "index")
# Operators without a kernel: they change how memory is read, reserve it, or ask what a tensor is.
NO_KERNEL = {
    "device", "dim", "is_contiguous", "is_same_size", "prim_layout", "size", "stride", "sym_numel", "sym_size",
    "sym_storage_offset", "sym_stride", "is_non_overlapping_and_dense", "is_strides_like_format", "layout", "numel",
    "storage_offset",
    "view", "_unsafe_view", "t", "transpose", "permute", "slice", "select", "expand", "unsqueeze", "squeeze", "detach",
    "alias", "as_strided", "split", "split_with_sizes", "unbind", "unflatten", "_reshape_alias", "lift_fresh", "set_",
    "resize_", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "view_as", "diagonal",
}  # fmt: skip


@dataclass
class Cost:
    """What the operators of a part of the step take: their number, floating-point operations, bytes, seconds."""

    kernels: int = 0
    flops: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0

    def add(self, flops: float, size: float, peak: float = FLOPS * OF_FLOPS) -> None:
        """Add a kernel, which is bound by its products or by its bytes."""
        self.kernels += 1
        self.flops += flops
        self.bytes += size
        self.seconds += max(flops / peak, size / (BYTES * OF_BYTES), LAUNCH)


class Counts(TorchDispatchMode):
    """Adds up the cost of each part of a step, and the peak of the memory that tensors on the device hold."""

    def __init__(self) -> None:
        super().__init__()
        self.part: str | None = None
        self.cost: defaultdict[str, Cost] = defaultdict(Cost)
        self.bytes = self.peak = 0
        self._held: Counter[int] = Counter()

    @contextmanager
    def of(self, part: str) -> Iterator[Cost]:
        """Add the operators of the block to a part of the step."""
        self.part = part
        yield self.cost[part]
        self.part = None

    def restart(self) -> None:
        """Forget all costs, and begin a new peak at the memory that is held now."""
        self.cost.clear()
        self.peak = self.bytes

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        made = on_device(result)
        for tensor in made:
            self._hold(tensor.untyped_storage())
        read, name = on_device((args, kwargs)), function.overloadpacket.__name__
        if self.part is not None and name not in NO_KERNEL and (made or read):
            self.cost[self.part].add(*kernel(name, read, made, args))
        return result

    def _hold(self, storage: Any) -> None:
        """Count a storage from now until it is freed."""
        key, size = storage._cdata, storage.nbytes()
        if key in self._held:
            return
        self._held[key] = size
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.bytes -= self._held.pop(key)


def on_device(values: Any) -> list[Tensor]:
    """Return the tensors on the device in nested lists, tuples and dicts."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.device.type == "cuda"]


def kernel(name: str, read: list[Tensor], made: list[Tensor], args: Any) -> tuple[float, float, float]:
    """Return a kernel's floating-point operations, bytes, and the operations a second that it can reach."""
    size = float(sum(map(stored, read)) + sum(map(whole, made)))
    if name in PRODUCTS:
        left, right = read[-2:]  # before them a bias
        peak = FLOPS_FLOAT32 if left.dtype == torch.float32 else FLOPS
        return 2 * left.numel() * right.shape[-1], size, peak * OF_FLOPS
    if name in OF_ATTENTION:
        return attention(name, args), size, FLOPS * OF_ATTENTION[name]
    if name == "_log_softmax":  # the largest value, the sum, the result: rows do not fit into a multiprocessor's memory
        size += 2 * whole(read[0])
    elif name in GATHERS:
        size = 2.0 * sum(map(whole, made))
    elif name in ("scatter_", "scatter"):
        size = 2.0 * whole(read[-1])
    return 0.0, size, FLOPS


def attention(name: str, args: Any) -> float:
    """Return the floating-point operations of attention by document, with documents of equal length."""
    forward = name == "_varlen_attn"
    query, longest = args[0 if forward else 1], args[5 if forward else 8]  # [T, heads, D]
    products = 4 if forward else 10  # twice two products, and five
    return float(products * query.numel() * longest / 2)  # half: causal


def whole(tensor: Tensor) -> int:
    """Return the bytes that a tensor's elements take."""
    return tensor.numel() * tensor.element_size()


def stored(tensor: Tensor) -> int:
    """Return the bytes that are read of a tensor, which may show the same memory several times."""
    return min(whole(tensor), tensor.untyped_storage().nbytes())
