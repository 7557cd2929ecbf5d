"""Liger's fused kernels for RMSNorm and SwiGLU (arXiv 2410.10989), in each layer where they compute what it computes.

A kernel reads and writes the activations once, and keeps one tensor for backward where the layer's own operators keep
several. No list says which models it fits: each layer that looks like one of the two kinds computes random numbers
both ways, forward and twice backward, and where a number differs it keeps its own code.

Two things of Liger's are left out. Its rotary embedding is not set in a layer but in transformers' module, for all
models of the process. Its backward passes write into what forward kept or into the gradient that they receive, which
is wrong where a gradient is computed twice, as `log_gradient_norms` does; here they write into copies.

n rows, H inputs, I channels of a SwiGLU.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from math import inf
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from neoplug import Problem, Role, hookimpl

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

Forward = Callable[[Tensor], Tensor]

ROWS = 8  # of random numbers, each ten times as large as the one before
SMALLEST = 1e-4
SMALL = 1e-38  # for rows of zeros
ROUNDING = 4  # units of the data type's precision that both ways may differ by, of the largest number of a row
FLOAT32 = 1e-5  # the same in float32, whose sums over H are rounded in another order
VARIANTS = ((0.0, "llama"), (0.0, "gemma"), (1.0, "gemma"))  # what a norm adds to its weight; when it rounds


@dataclass(eq=False)
class Liger:
    """Compute RMSNorm and SwiGLU of a model in kernels of the package liger_kernel, on a GPU."""

    @hookimpl
    def check(self) -> list[Problem]:
        """Refuse it where the package is not installed."""
        if find_spec("liger_kernel"):
            return []
        return [Problem("the package liger_kernel is not installed", fix="`pip install liger-kernel`")]

    @hookimpl
    def after_load(self, model: PreTrainedModel, role: Role) -> None:
        """Replace the forward of each layer where the kernel agrees; say how many, and what kept the others."""
        fused, kept = fuse(model)
        if not fused:
            why = "; ".join(sorted(kept)) or "it has neither RMSNorm nor SwiGLU"
            logger.warning("liger: the layers of the %s compute as without it: %s", role, why)
            return
        layers = " and ".join(f"{count} of {kind}" for kind, count in sorted(fused.items()))
        logger.info("liger: kernels compute %s in the %s", layers, role)
        for reason, count in kept.items():
            logger.warning("liger: %d layers of the %s compute as without it: %s", count, role, reason)


def fuse(model: nn.Module) -> tuple[Counter[str], Counter[str]]:
    """Replace the forward of each layer where a kernel agrees with it; return layers by kind, and by what kept them."""
    fused: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    dtype = next((weight.dtype for weight in model.parameters() if weight.is_floating_point()), torch.float32)
    for layer in list(model.modules()):
        kind = kind_of(layer)
        if kind is None:
            continue
        try:
            found = agreeing(layer, kind, dtype)
        except Exception as error:  # of an import, a compiler, a driver or the device: the layer does without
            kept[f"its kernel does not run ({type(error).__name__}: {error})"] += 1
            continue
        if found is None:
            kept[f"{type(layer).__name__} computes other numbers than its kernel"] += 1
        else:
            layer.forward = found
            fused[kind] += 1
    return fused, kept


def kind_of(layer: nn.Module) -> str | None:
    """Return "RMSNorm" or "SwiGLU" where a layer has the parts of one; None for any other."""
    names = dict(layer.named_parameters(recurse=False)).keys()
    if type(layer).__name__.endswith("RMSNorm"):
        return "RMSNorm" if names == {"weight"} and epsilon(layer) is not None else None
    return "SwiGLU" if {"gate_proj", "up_proj", "down_proj"} <= dict(layer.named_children()).keys() else None


def epsilon(norm: Any) -> float | None:
    """Return what a norm adds to the mean square."""
    found: float | None = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    return found


def agreeing(layer: Any, kind: str, dtype: torch.dtype) -> Forward | None:
    """Return the way through a kernel that is nearest to the layer's own; None where all differ beyond rounding.

    dtype  of the hidden states, where the layer's weights are quantised
    """
    own = layer.forward
    weight = layer.weight if kind == "RMSNorm" else None
    hidden = _examples(layer, dtype)
    expected = list(_results(own, hidden, weight))
    best, least = None, 1.0
    for way in _ways(layer, kind, own, hidden.dtype):
        off = max(map(_difference, _results(way, hidden, weight), expected))
        if off <= least:
            best, least = way, off
    return best


def _ways(layer: Any, kind: str, own: Forward, dtype: torch.dtype) -> Iterator[Forward]:
    """Yield the ways through a kernel that may compute what a layer does; `dtype`: in which they are compared."""
    if kind == "SwiGLU":
        yield partial(_swiglu, layer, dtype)
        return
    for offset, casting in VARIANTS:
        yield partial(_norm, layer, own, offset, casting)


def _norm(layer: Any, own: Forward, offset: float, casting: str, hidden: Tensor) -> Tensor:
    """[..., H] -> [..., H]; by the layer's own code where types differ: the kernel answers in that of `hidden`."""
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    if hidden.dtype != layer.weight.dtype:
        return own(hidden)
    in_place = False
    normed: Tensor = LigerRMSNormFunction.apply(hidden, layer.weight, epsilon(layer), offset, casting, in_place)
    return normed


def _swiglu(layer: Any, compared: torch.dtype, hidden: Tensor) -> Tensor:
    """[..., H] -> [..., H], through the layer's three projections as they are, also with adapters or in 4 bits.

    compared  the type in which the kernel was compared; in another one, as under autocast, torch multiplies
    """
    gate, up = layer.gate_proj(hidden), layer.up_proj(hidden)
    gated = GatedSiLU.apply(gate, up) if gate.dtype == up.dtype == compared else functional.silu(gate) * up
    projected: Tensor = layer.down_proj(gated)
    return projected


class GatedSiLU(torch.autograd.Function):
    """silu(gate) * up by Liger's kernels, which leave what they read as it is; backward can be called again."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """[..., I], [..., I] -> [..., I]."""
        from liger_kernel.ops.swiglu import swiglu_forward

        gate, up, product = swiglu_forward(gate.contiguous(), up.contiguous())
        ctx.save_for_backward(gate, up)
        result: Tensor = product
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """[..., I] -> [..., I], [..., I]."""
        from liger_kernel.ops.swiglu import swiglu_backward

        gate, up = (kept.clone() for kept in ctx.saved_tensors)
        by_gate, by_up = swiglu_backward(gate, up, gradient.contiguous())
        return by_gate, by_up


def _examples(layer: Any, dtype: torch.dtype) -> Tensor:
    """Return inputs [2, ROWS / 2, H] of a layer, from small to large."""
    weight = layer.weight if hasattr(layer, "weight") else layer.gate_proj.weight
    width = weight.shape[0] if weight.dim() == 1 else layer.gate_proj.in_features
    dtype = weight.dtype if weight.is_floating_point() else dtype
    hidden = torch.randn(2, ROWS // 2, width, generator=torch.Generator().manual_seed(0))
    sizes = SMALLEST * 10.0 ** torch.arange(ROWS)
    return (hidden * sizes.view(2, ROWS // 2, 1)).to(weight.device, dtype)


def _results(forward: Forward, hidden: Tensor, weight: Tensor | None) -> Iterator[Tensor]:
    """Yield a layer's output, and its gradients by the input and by `weight`, computed twice from the same graph."""
    read = [hidden.detach().requires_grad_()]
    frozen = weight is not None and not weight.requires_grad
    if weight is not None:
        read.append(weight.requires_grad_())
    try:
        with torch.enable_grad():
            output = forward(read[0])
        yield output.detach()
        gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
        for _ in range(2):
            yield from torch.autograd.grad(output, read, gradient, retain_graph=True)
    finally:
        if frozen and weight is not None:
            weight.requires_grad_(False)


def _difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference of two results, by what rounding may explain; infinite where it is no number."""
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return inf
    allowed = max(ROUNDING * torch.finfo(expected.dtype).eps, FLOAT32)
    size = expected.double().abs().amax(-1, keepdim=True)
    off = (
        (found.double() - expected.double()).abs() / (allowed * size).clamp(min=torch.finfo(torch.float32).tiny)
    ).max()
    return float(off) if off.isfinite() else float("inf")
