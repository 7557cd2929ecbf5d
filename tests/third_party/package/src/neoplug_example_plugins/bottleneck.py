"""A linear bottleneck after chosen linear layers: y + U D y, with D [width, out] and U [out, width] trained.

U starts at 0, so the student starts at its base. It can be merged into the layer: W + U D W, b + U D b.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from neoplug import AdapterTraits, hookimpl


class Bottleneck(nn.Module):
    """A frozen linear layer with a trained bottleneck on its output."""

    def __init__(self, layer: nn.Linear, width: int, rng: torch.Generator) -> None:
        super().__init__()
        start = torch.randn(width, layer.out_features, generator=rng) / layer.out_features**0.5
        self.layer = layer
        self.down = nn.Parameter(start.to(layer.weight.device))
        self.up = nn.Parameter(torch.zeros(layer.out_features, width, device=layer.weight.device))

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        outputs = self.layer(inputs)
        return outputs + (outputs.to(self.down.dtype) @ self.down.T @ self.up.T).to(outputs.dtype)

    def merged(self) -> nn.Linear:
        """Return one linear layer that computes the same outputs."""
        with torch.no_grad():
            change = (self.up @ self.down).to(self.layer.weight.dtype)
            self.layer.weight += change @ self.layer.weight
            if self.layer.bias is not None:
                self.layer.bias += change @ self.layer.bias
        return self.layer


@dataclass(eq=False)
class OutputBottleneck:
    """Puts a bottleneck after every linear layer with one of the names."""

    traits: ClassVar[AdapterTraits] = AdapterTraits(sized_by="width")

    target_modules: list[str]
    width: int = 4  # at least 1

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width is {self.width}, but must be at least 1")

    @hookimpl
    def add_adapter(self, model: nn.Module, rng: torch.Generator) -> nn.Module:
        """Wrap the layers in place."""
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and name.rpartition(".")[2] in self.target_modules:
                model.set_submodule(name, Bottleneck(module, self.width, rng))
        return model

    @hookimpl
    def save_adapter(self, model: nn.Module, path: Path) -> None:
        """Write the matrices by layer, and the options."""
        tensors = {
            f"{name}.{part}": getattr(module, part).detach().cpu().contiguous()
            for name, module in bottlenecks(model)
            for part in ("down", "up")
        }
        save_file(tensors, path / "bottlenecks.safetensors")
        options = {"target_modules": self.target_modules, "width": self.width}
        (path / "bottleneck.json").write_text(json.dumps(options), encoding="utf-8")

    @hookimpl
    def load_adapter(self, model: nn.Module, path: Path) -> nn.Module:
        """Wrap the layers of the options in the folder, and read their matrices."""
        options = json.loads((path / "bottleneck.json").read_text(encoding="utf-8"))
        model = replace(self, **options).add_adapter(model, torch.Generator())
        tensors = load_file(path / "bottlenecks.safetensors")
        for name, module in bottlenecks(model):
            for part in ("down", "up"):
                getattr(module, part).data.copy_(tensors[f"{name}.{part}"])
        return model

    @hookimpl
    def merge_adapter(self, model: nn.Module) -> nn.Module:
        """Merge every bottleneck into its layer."""
        for name, module in list(bottlenecks(model)):
            model.set_submodule(name, module.merged())
        return model


def bottlenecks(model: nn.Module) -> Iterator[tuple[str, Bottleneck]]:
    """Yield (name, module) of each bottleneck."""
    for name, module in model.named_modules():
        if isinstance(module, Bottleneck):
            yield name, module
