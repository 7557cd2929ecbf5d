"""Products of float32 matrices from bfloat16 ones, on CUDA: by the units that multiply these, and nearly as exact.

A float32 number is the sum of two bfloat16 numbers, its rounding and that of the rest, to 16 of its 24 bits. The GPU
multiplies bfloat16 exactly and adds up in float32; parts that lie side by side make one product. Logits need these
bits, since the objective takes small differences of their softmax; of a gradient the rounding suffices.

n rows, H inputs, V outputs. Source: Henry, Tang, Heinecke 2019, arXiv 1904.06376.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


def has_kernel(device: torch.device) -> bool:
    """Return whether a device multiplies 16-bit matrices into float32."""
    return device.type == "cuda"


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """[n, H] @ [H, V] in bfloat16 -> [n, V] float32, which is not rounded; only CUDA has this kernel."""
    return torch.mm(left, right, out_dtype=torch.float32)


def split(values: Tensor) -> list[Tensor]:
    """Return bfloat16 tensors whose sum is `values`: one where these are bfloat16, else two."""
    if values.dtype == torch.bfloat16:
        return [values]
    rounded = values.bfloat16()
    return [rounded, (values - rounded).bfloat16()]


def side_by_side(weight: Tensor) -> Tensor:
    """Return what `split` does as one tensor, [V, H] -> [V, H] or [V, 2 H]."""
    if weight.dtype == torch.bfloat16:
        return weight
    inputs = weight.shape[1]
    parts = weight.new_empty(len(weight), 2 * inputs, dtype=torch.bfloat16)
    parts[:, :inputs] = weight
    parts[:, inputs:] = weight - parts[:, :inputs]
    return parts


class SplitLinear(torch.autograd.Function):
    """A linear layer in float32, by products of bfloat16 parts."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, states: list[Tensor], parts: Tensor
    ) -> Tensor:
        """[n, H], [V, H], [V] -> [n, V] float32; `states` are the parts of `hidden`, `parts` those of `weight`.

        parts  [V, H] or [V, 2 H] bfloat16, the rounded weight before the rest
        """
        rounded, *rest = states
        high = parts[:, : hidden.shape[1]]
        ctx.save_for_backward(rounded, high)
        ctx.dtypes = hidden.dtype, weight.dtype
        output = multiply(rounded.repeat(1, parts.shape[1] // hidden.shape[1]), parts.t())
        for part in rest:
            output += multiply(part, high.t())
        return output if bias is None else output.add_(bias)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        """[n, V] -> the gradients of hidden states, weight and bias."""
        rounded, high = ctx.saved_tensors
        given = gradient.bfloat16()
        by_hidden = multiply(given, high).to(ctx.dtypes[0]) if ctx.needs_input_grad[0] else None
        by_weight = multiply(given.t(), rounded).to(ctx.dtypes[1]) if ctx.needs_input_grad[1] else None
        return by_hidden, by_weight, gradient.sum(0) if ctx.needs_input_grad[2] else None, None, None


class SplitProducts(TorchFunctionMode):
    """Computes the linear layers of a module by `SplitLinear` inside the context, all else as it is.

    weights   of the module; the parts of each are made once
    narrow    of weights, by id: the bfloat16 tensor with the same values
    """

    def __init__(self, weights: Iterable[Tensor], narrow: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.weights = {id(weight): weight for weight in weights}
        self.parts = dict(narrow)

    def call(self, project: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        """Return `project` of the hidden states [n, H] in float32; their own values are known to be bfloat16."""
        self.hidden, self.states = hidden.float(), split(hidden.detach())
        with self:
            return project(self.hidden)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is functional.linear and args[0].dim() == 2 and args[0].dtype == torch.float32:
            return self.linear(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))

    def linear(self, hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """[n, H], [V, H], [V] -> [n, V], as `functional.linear`."""
        states = self.states if hidden is self.hidden else split(hidden.detach())
        return SplitLinear.apply(hidden, weight, bias, states, self.parts_of(weight))  # type: ignore[no-any-return, no-untyped-call]

    def parts_of(self, weight: Tensor) -> Tensor:
        """Return the parts of a weight side by side, [V, H] or [V, 2 H]; those of the module's weights are kept."""
        if id(weight) not in self.weights:
            return side_by_side(weight.detach())
        if id(weight) not in self.parts:
            self.parts[id(weight)] = side_by_side(weight.detach())
        return self.parts[id(weight)]
