"""What training changed, layer by layer, as products of low rank: all that a LoRA can hold, and how well it does.

O and I are a linear layer's outputs and inputs, k the rank that its change has, R the rank that is kept of all.
Knows two models of one shape; knows no adapter and no file.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import hypot

import torch
from torch import Tensor, nn

from neoplug.errors import UsageError

ROUNDING = 2 * torch.finfo(torch.float32).eps  # of a weight: less than this share of it is no change, it is arithmetic
SKETCHES = (64, 256)  # directions: a change of fewer, in a layer of four times as many, needs no full decomposition


@dataclass(frozen=True)
class Layer:
    """A linear layer's weight [O, I] in both models; `transposed` where the model itself keeps [I, O]."""

    before: Tensor
    after: Tensor
    transposed: bool

    @property
    def change(self) -> Tensor:
        """Return the difference [O, I] in float64."""
        return self.after.double() - self.before.double()

    @property
    def noise(self) -> float:
        """Return the norm of what merging in float32 may have rounded."""
        return ROUNDING * float(self.after.norm())


@dataclass(frozen=True)
class Product:
    """The largest components of a change: left [O, n] @ right [n, I], the largest first; all of them where n is k."""

    left: Tensor
    right: Tensor
    rank: int  # k

    def padded(self, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return B [O, R] and A [R, I] in `dtype`; what a change of lower rank does not fill is 0."""
        up = self.left.new_zeros(self.left.shape[0], rank)
        down = self.right.new_zeros(rank, self.right.shape[1])
        kept = min(rank, self.left.shape[1])
        up[:, :kept], down[:kept] = self.left[:, :kept], self.right[:kept]
        return up.to(dtype), down.to(dtype)


@dataclass(frozen=True)
class Fidelity:
    """How well products of one rank hold a change; errors are Frobenius norms, as shares of the change's own."""

    rank: int  # R
    needed: int  # the largest k of all layers: from there on nothing but rounding is lost
    error: float  # of all layers together
    layers: dict[str, tuple[int, float]]  # name -> its k, its error

    @property
    def exact(self) -> bool:
        """Say whether nothing but rounding is lost."""
        return self.rank >= self.needed

    @property
    def worst(self) -> str:
        """Return the name of the layer that is held worst."""
        return max(self.layers, key=lambda name: self.layers[name][1])


def changed_layers(after: nn.Module, before: nn.Module) -> dict[str, Layer]:
    """Return the linear layers that differ between two models of one shape, by name.

    Raises UsageError where nothing differs, or anything else differs too.
    """
    layers = dict(_linear(after, before))
    known = dict(before.named_parameters(remove_duplicate=False))
    elsewhere = [
        name
        for name, weight in after.named_parameters(remove_duplicate=False)
        if name.removesuffix(".weight") not in layers and not _same(weight, known.get(name))
    ]
    if elsewhere:
        more = f" and {len(elsewhere) - 1} more" if len(elsewhere) > 1 else ""
        raise UsageError(
            "the change does not fit into a LoRA\n"
            f"why: it reaches {elsewhere[0]}{more}, and a LoRA holds what is added to weights of linear layers\n"
            "fix: export the merged model instead"
        )
    if not layers:
        raise UsageError("there is no change to export\nwhy: every weight is the base's\nfix: train for longer")
    return layers


def _same(weight: Tensor, other: Tensor | None) -> bool:
    return other is not None and torch.equal(weight, other)


def _linear(after: nn.Module, before: nn.Module) -> Iterator[tuple[str, Layer]]:
    """Yield each linear layer whose weight differs."""
    from transformers.pytorch_utils import Conv1D

    for name, module in after.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            old, new = (model.get_parameter(f"{name}.weight").detach() for model in (before, after))
            if not torch.equal(old, new):
                turned = isinstance(module, Conv1D)
                yield name, Layer(old.T, new.T, True) if turned else Layer(old, new, False)


def affordable(layers: Mapping[str, Layer]) -> int:
    """Return the rank at which a LoRA has as many numbers as the weights that it changes; at least 1."""
    shapes = [layer.after.shape for layer in layers.values()]
    return max(1, sum(outputs * inputs for outputs, inputs in shapes) // sum(map(sum, shapes)))


def decompose(layer: Layer, most: int) -> Product:
    """Return at most `most` components of a layer's change, and the rank that it has beside rounding."""
    left, sizes, right = _components(layer.change, layer.noise)
    rest = (
        sizes.square().flip(0).cumsum(0).flip(0).sqrt()
    )  # [n] -> what is lost when it and the smaller ones are left out
    rank = int((rest > layer.noise).sum())
    kept = min(rank, most)
    roots = sizes[:kept].sqrt()  # half of each to either side, so that neither overflows float16
    return Product((left[:, :kept] * roots).float(), (roots[:, None] * right[:kept]).float(), rank)


def _components(change: Tensor, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return U [O, n], singular values [n], V^T [n, I]: all of them but what is below `noise`."""
    for width in SKETCHES:
        if min(change.shape) <= 4 * width:
            break
        basis = torch.linalg.qr(change @ _probes(change.shape[1], width)).Q  # [O, width]
        inside = basis.T @ change
        if (change - basis @ inside).norm() <= noise:
            left, sizes, right = torch.linalg.svd(inside, full_matrices=False)
            return basis @ left, sizes, right
    left, sizes, right = torch.linalg.svd(change, full_matrices=False)
    return left, sizes, right


def _probes(inputs: int, width: int) -> Tensor:
    return torch.randn(inputs, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def fidelity(layers: Mapping[str, Layer], products: Mapping[str, Product], rank: int, dtype: torch.dtype) -> Fidelity:
    """Measure what the matrices lose as they are written: rank and rounding to `dtype`."""
    lost, whole, shares = 0.0, 0.0, {}
    for name, layer in layers.items():
        up, down = products[name].padded(rank, dtype)
        change = layer.change
        size, miss = float(change.norm()), float((change - up.double() @ down.double()).norm())
        lost, whole = hypot(lost, miss), hypot(whole, size)
        shares[name] = (products[name].rank, miss / size)
    return Fidelity(rank, max(product.rank for product in products.values()), lost / whole, shares)
