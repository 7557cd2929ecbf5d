"""LoRA+: B has a higher learning rate than A, since B starts at 0 and its best rate grows with the width.

    lr of B = lr_ratio x learning_rate;  of A = learning_rate;  of adapters on embeddings = lr_embedding

Convention: the groups of peft.optimizers.create_loraplus_optimizer; vectors, as DoRA's magnitude and biases, get B's
rate. The groups set no weight decay, so the optimizer's applies as to plain LoRA, and a ratio of 1 is plain LoRA bit
for bit (where no embedding is adapted).
Source: Hayou, Ghosh, Yu 2024, arXiv 2402.12354.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from neoplug import Problem, UsageError, hookimpl
from neoplug_adapters.companions import key_of

if TYPE_CHECKING:
    import torch

    from neoplug import Recipe


@dataclass(eq=False)
class LoRAPlus:
    """A higher learning rate for B of the adapter named with it: `adapter: {dora: {}, loraplus: {lr_ratio: 16}}`."""

    lr_ratio: float = 16.0  # 1 or more; peft's loraplus_lr_ratio
    lr_embedding: float = 1e-6  # above 0; peft's loraplus_lr_embedding, for adapters on embedding layers

    def __post_init__(self) -> None:
        if not 1 <= self.lr_ratio < inf:
            raise ValueError(f"lr_ratio is {self.lr_ratio}, but must be finite and at least 1, which is plain LoRA")
        if not 0 < self.lr_embedding < inf:
            raise ValueError(f"lr_embedding is {self.lr_embedding}, but must be a finite number above 0")

    @hookimpl
    def check(self, recipe: Recipe) -> list[Problem]:
        """Refuse a recipe without another adapter or with `full`; `param_groups` checks that there are B matrices."""
        mine = key_of("loraplus", recipe.adapter) or "loraplus"
        others = [key for key in recipe.adapter if key != mine]
        full = key_of("full", others)
        if others and full is None:
            return []
        what = (
            f"`{mine}` has no effect with `{full}`, which has no B matrices"
            if full
            else f"`{mine}` adds no adapter itself"
        )
        return [
            Problem(what, WHY, "name `lora` or `dora` with it, as adapter: {lora: {}, loraplus: {}}", ("adapter", mine))
        ]

    @hookimpl
    def param_groups(self, model: torch.nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        """Return up to three groups, in peft's order: A and all else, embeddings, B and vectors.

        Raises UsageError where no B is found.
        """
        groups: dict[str, list[torch.nn.Parameter]] = {"A": [], "embedding": [], "B": []}
        trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        if not any("lora_B" in name or "lora_embedding_B" in name for name in trainable):
            raise UsageError(
                f"loraplus finds no B matrices in the model\nwhy: {WHY}\nfix: name `lora` or `dora` with it"
            )
        for name, parameter in trainable.items():
            groups[_group(name, parameter)].append(parameter)
        rates = {"A": learning_rate, "embedding": self.lr_embedding, "B": learning_rate * self.lr_ratio}
        return [{"params": members, "lr": rates[name]} for name, members in groups.items() if members]


WHY = "LoRA+ only sets learning rates: it needs an adapter with low-rank matrices A and B"


def _group(name: str, parameter: torch.nn.Parameter) -> str:
    if "lora_embedding_" in name:
        return "embedding"
    return "B" if "lora_B" in name or parameter.ndim == 1 else "A"
