"""Low-rank decomposition of the difference between two models, layer by layer, and the error of that approximation.

O and I are a linear layer's outputs and inputs, k the rank of its change, R the common rank of all layers. Depends on
neither adapters nor files.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import hypot

import torch
from torch import Tensor, nn

from neoplug.errors import UsageError

# Relative to a weight: smaller differences are rounding errors, not changes.
ROUNDING = 2 * torch.finfo(torch.float32).eps
SKETCHES = (64, 256)  # sizes of random projections, tried before a full decomposition of larger layers


@dataclass(frozen=True)
class Layer:
    """A linear layer's weight [O, I] in both models; `transposed` where the model stores [I, O]."""

    before: Tensor
    after: Tensor
    transposed: bool

    @property
    def change(self) -> Tensor:
        """Return the difference [O, I] in float64."""
        return self.after.double() - self.before.double()

    @property
    def noise(self) -> float:
        """Return a bound on the norm of the rounding error of a merge in float32."""
        return ROUNDING * float(self.after.norm())


@dataclass(frozen=True)
class Product:
    """The n largest components of a change, left [O, n] @ right [n, I], in descending order; `rank` is k."""

    left: Tensor
    right: Tensor
    rank: int  # k

    def padded(self, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return B [O, R] and A [R, I] in `dtype`, padded with zeros where n is less than R."""
        up = self.left.new_zeros(self.left.shape[0], rank)
        down = self.right.new_zeros(rank, self.right.shape[1])
        kept = min(rank, self.left.shape[1])
        up[:, :kept], down[:kept] = self.left[:, :kept], self.right[:kept]
        return up.to(dtype), down.to(dtype)


@dataclass(frozen=True)
class Fidelity:
    """The error of representing a change at one rank; errors are Frobenius norms, relative to that of the change."""

    rank: int  # R
    needed: int  # the largest k of all layers: at this rank only rounding is lost
    error: float  # of all layers together
    layers: dict[str, tuple[int, float]]  # name -> its k, its error

    @property
    def exact(self) -> bool:
        """Whether only rounding is lost."""
        return self.rank >= self.needed

    @property
    def worst(self) -> str:
        """The name of the layer with the largest error."""
        return max(self.layers, key=lambda name: self.layers[name][1])


def changed_layers(after: nn.Module, before: nn.Module) -> dict[str, Layer]:
    """Return the linear layers that differ between two models of one architecture, by name.

    Raises UsageError where none differs, or other parameters differ too.
    """
    layers = dict(_changed_linear_layers(after, before))
    original = dict(before.named_parameters(remove_duplicate=False))
    elsewhere = [
        name
        for name, weight in after.named_parameters(remove_duplicate=False)
        if name.removesuffix(".weight") not in layers and not _same(weight, original.get(name))
    ]
    if elsewhere:
        more = f" and {len(elsewhere) - 1} more" if len(elsewhere) > 1 else ""
        raise UsageError(
            "the change cannot be written as a LoRA\n"
            f"why: {elsewhere[0]}{more} changed, and a LoRA changes weights of linear layers only\n"
            "fix: export the merged model instead"
        )
    if not layers:
        raise UsageError(
            "there is no change to export\nwhy: all weights equal those of the base\nfix: train for longer"
        )
    return layers


def _same(weight: Tensor, other: Tensor | None) -> bool:
    return other is not None and torch.equal(weight, other)


def _changed_linear_layers(after: nn.Module, before: nn.Module) -> Iterator[tuple[str, Layer]]:
    """Yield name and weights of each linear layer whose weight differs."""
    from transformers.pytorch_utils import Conv1D

    for name, module in after.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            old, new = (model.get_parameter(f"{name}.weight").detach() for model in (before, after))
            if not torch.equal(old, new):
                transposed = isinstance(module, Conv1D)
                yield name, Layer(old.T, new.T, True) if transposed else Layer(old, new, False)


def largest_saving_rank(layers: Mapping[str, Layer]) -> int:
    """Return the largest rank at which a LoRA has no more parameters than the weights that it changes; at least 1."""
    shapes = [layer.after.shape for layer in layers.values()]
    return max(1, sum(outputs * inputs for outputs, inputs in shapes) // sum(map(sum, shapes)))


def decompose(layer: Layer, most: int) -> Product:
    """Return at most `most` components of a layer's change, and the change's rank up to rounding."""
    left, sizes, right = _components(layer.change, layer.noise)
    rest = sizes.square().flip(0).cumsum(0).flip(0).sqrt()  # [n]: the error of leaving out this one and all smaller
    rank = int((rest > layer.noise).sum())
    kept = min(rank, most)
    roots = sizes[:kept].sqrt()  # split evenly, so that neither factor overflows float16
    return Product((left[:, :kept] * roots).float(), (roots[:, None] * right[:kept]).float(), rank)


def _components(change: Tensor, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return U [O, n], singular values [n] and V^T [n, I] of a change, up to an error of `noise`.

    A large change is first projected onto the space that it maps random vectors to; where the rest is larger than
    `noise`, it is decomposed in full.
    """
    for width in SKETCHES:
        if min(change.shape) <= 4 * width:
            break
        basis = torch.linalg.qr(change @ _random_projection(change.shape[1], width)).Q  # [O, width]
        projected = basis.T @ change
        if (change - basis @ projected).norm() <= noise:
            left, sizes, right = torch.linalg.svd(projected, full_matrices=False)
            return basis @ left, sizes, right
    left, sizes, right = torch.linalg.svd(change, full_matrices=False)
    return left, sizes, right


def _random_projection(inputs: int, width: int) -> Tensor:
    """Return a random matrix [I, width], the same at each call."""
    return torch.randn(inputs, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def fidelity(layers: Mapping[str, Layer], products: Mapping[str, Product], rank: int, dtype: torch.dtype) -> Fidelity:
    """Return the error of the LoRA as it is written: at `rank`, with matrices rounded to `dtype`."""
    error, norm, per_layer = 0.0, 0.0, {}
    for name, layer in layers.items():
        up, down = products[name].padded(rank, dtype)
        change = layer.change
        layer_norm, layer_error = float(change.norm()), float((change - up.double() @ down.double()).norm())
        error, norm = hypot(error, layer_error), hypot(norm, layer_norm)
        per_layer[name] = (products[name].rank, layer_error / layer_norm)
    return Fidelity(rank, max(product.rank for product in products.values()), error / norm, per_layer)
