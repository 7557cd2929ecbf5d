"""LoRA-XS: a trained r x r matrix between frozen factors, the largest singular components of the weight.

    W + (lora_alpha / r) A R B,  A = U_r S_r, B = V_r^T of W = U S V^T;  R ~ N(0, 1e-10) at the start

The number of trained parameters, r^2 for each target, does not depend on the size of the weight.
Source: Balazy et al. 2024, arXiv 2405.17604, sections 3 and 4.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from neoplug import AdapterTraits, Problem, RecipeError, hookimpl
from neoplug_adapters.companions import key_of, quantiser
from neoplug_adapters.targets import target_names, unmatched

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from neoplug import Recipe

OPTIONS, WEIGHTS = "lora_xs.json", "lora_xs.safetensors"
DEVIATION = 1e-5  # of R's entries at the start


class Adapted(nn.Module):
    """A linear layer with R between the frozen factors of its weight.

    base    the layer; its weight is [O, I], or [I, O] in transformers' Conv1D
    A, B    [O, r], [r, I] float32
    R       [r, r] float32, trained
    """

    base: Any
    A: Tensor
    B: Tensor

    def __init__(self, base: Any, rank: int, scaling: float) -> None:
        super().__init__()
        self.base, self.scaling = base, scaling
        outputs, inputs = _weight(base).shape
        rank, device = min(rank, outputs, inputs), base.weight.device
        self.R = nn.Parameter(torch.zeros(rank, rank, dtype=torch.float32, device=device))
        self.register_buffer("A", torch.zeros(outputs, rank, dtype=torch.float32, device=device))
        self.register_buffer("B", torch.zeros(rank, inputs, dtype=torch.float32, device=device))

    def start(self, rng: torch.Generator) -> None:
        """Compute the factors of the weight, and draw R."""
        rank = len(self.R)
        self.R.data.copy_(torch.randn(rank, rank, generator=rng) * DEVIATION)
        if self.R.is_meta:
            return
        left, values, right = torch.linalg.svd(_weight(self.base).float(), full_matrices=False)
        self.A.copy_(left[:, :rank] * values[:rank])
        self.B.copy_(right[:rank])

    def forward(self, hidden: Tensor) -> Tensor:
        """[.., I] -> [.., O]."""
        output = self.base(hidden)
        inner = functional.linear(functional.linear(hidden.to(self.B.dtype), self.B), self.R)
        return output + (self.scaling * functional.linear(inner, self.A)).to(output.dtype)

    @torch.no_grad()
    def merge(self) -> Any:
        """Return the layer, with the change added to its weight."""
        weight = _weight(self.base)
        weight += (self.scaling * self.A @ self.R @ self.B).to(weight.dtype)
        return self.base


@dataclass(eq=False)
class LoRAXS:
    """A trained r x r matrix between the largest singular components of each weight (LoRA-XS)."""

    name: ClassVar[str] = "lora_xs"
    traits: ClassVar[AdapterTraits] = AdapterTraits(
        sized_by="r",
        not_on_quantised="its factors are singular vectors of weights in full precision",
        not_on_experts="it wraps linear layers",
        own_options=("target_modules", "r", "lora_alpha"),
    )

    target_modules: str | list[str] = "all-linear"  # or the ends of names, or a regex of whole names
    r: int = 32  # the rank, above 0
    lora_alpha: float = 32.0  # the change is scaled by lora_alpha / r; above 0

    def __post_init__(self) -> None:
        for option in ("r", "lora_alpha"):
            if not 0 < getattr(self, option) < float("inf"):
                raise ValueError(f"{option} is {getattr(self, option)}, but must be above 0")

    @hookimpl
    def check(self, recipe: Recipe) -> list[Problem]:
        """Refuse a quantised student."""
        if (loader := quantiser(recipe.student.load)) is None:
            return []
        what = f"`{self.name}` does not support a student loaded by `{loader}`"
        fix, path = "load the student unquantised, or name `lora`", key_of(self.name, recipe.adapter) or self.name
        return [Problem(what, self.traits.not_on_quantised, fix, ("adapter", path))]

    @hookimpl
    def add_adapter(self, model: PreTrainedModel, rng: torch.Generator) -> nn.Module:
        """Return the model with its targets wrapped; R is drawn from `rng`.

        Raises RecipeError where a name in the options matches no module.
        """
        for adapted in self._wrap(model):
            adapted.start(rng)
        return model

    @hookimpl
    def save_adapter(self, model: PreTrainedModel, path: Path) -> None:
        """Write R and the factors of each target, and the options.

        The factors are stored because singular vectors are unique up to their sign only.
        """
        from safetensors.torch import save_file

        stored = {
            f"{name}.{part}": getattr(layer, part).detach().contiguous()
            for name, layer in _adapted(model).items()
            for part in ("A", "R", "B")
        }
        save_file(stored, path / WEIGHTS, {"format": "pt"})
        options = {option: getattr(self, option) for option in self.traits.own_options}
        (path / OPTIONS).write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")

    @hookimpl
    def load_adapter(self, model: PreTrainedModel, path: Path) -> nn.Module:
        """Return the model with the adapter that `save_adapter` wrote, with the options of its folder."""
        from safetensors.torch import load_file

        stored = load_file(path / WEIGHTS, device=str(model.device))
        replace(self, **json.loads((path / OPTIONS).read_text(encoding="utf-8")))._wrap(model)
        for name, layer in _adapted(model).items():
            for part in ("A", "R", "B"):
                getattr(layer, part).data.copy_(stored[f"{name}.{part}"])
        return model

    @hookimpl
    def merge_adapter(self, model: PreTrainedModel) -> PreTrainedModel:
        """Return the model with the changes added to its weights."""
        for name, layer in _adapted(model).items():
            _put(model, name, layer.merge())
        return model

    def _wrap(self, model: Any) -> list[Adapted]:
        """Wrap the targets of a model, and return them in its order."""
        wrong = [what for _, what in unmatched(model, {"target_modules": self._names()}, None, {})]
        names = [] if wrong else target_names(model, self.target_modules, None, None)
        linear = [name for name in names if isinstance(model.get_submodule(name), _kinds())]
        if not linear:
            wrong = wrong or ["`target_modules` names no linear layer"]
            raise RecipeError([Problem(what, path=("adapter", self.name, "target_modules")) for what in wrong])
        found = []
        for name in linear:
            found.append(Adapted(model.get_submodule(name), self.r, self.lora_alpha / self.r))
            _put(model, name, found[-1])
        return found

    def _names(self) -> str | list[str] | None:
        return None if self.target_modules == "all-linear" else self.target_modules


def _adapted(model: nn.Module) -> dict[str, Adapted]:
    """Return the wrapped layers by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, Adapted)}


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Replace the layer of this name."""
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, layer)


def _kinds() -> tuple[type[nn.Module], ...]:
    from transformers.pytorch_utils import Conv1D

    return nn.Linear, Conv1D


def _weight(layer: Any) -> Tensor:
    """Return the weight as [O, I], without copying it."""
    weight: Tensor = layer.weight.data
    return weight if isinstance(layer, nn.Linear) else weight.T
