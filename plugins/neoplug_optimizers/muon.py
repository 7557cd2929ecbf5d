"""Muon: the step of a matrix is its orthogonalised momentum, whose singular values are all near 1 (Jordan et al. 2024,
kellerjordan.github.io/posts/muon). torch.optim.Muon for matrices, torch.optim.AdamW for all other parameters.

Convention: `match_rms_adamw` scales the step of an r x c matrix by 0.2 sqrt(max(r, c)), so that its
root mean square is that of AdamW's and one learning rate fits both (Liu et al. 2025, arXiv 2502.16982).
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from math import inf
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from neoplug import Problem, UsageError, hookimpl
from neoplug_optimizers.adamw import AdamW

if TYPE_CHECKING:
    from neoplug import Recipe

WHY = "it orthogonalises matrices: a low-rank adapter's A and B, or a model's hidden layers"


@dataclass(eq=False)
class Muon:
    """Muon for matrices; AdamW without weight decay for vectors, embeddings and the output head."""

    momentum: float = 0.95  # in [0, 1)
    nesterov: bool = True
    ns_steps: int = 5  # Newton-Schulz iterations, 1 to 99
    adjust_lr_fn: Literal["original", "match_rms_adamw"] = "match_rms_adamw"  # original: scales by sqrt(max(1, r / c))
    weight_decay: float = 0.0  # of matrices, per step, times the learning rate
    betas: tuple[float, float] = (0.9, 0.999)  # of AdamW
    eps: float = 1e-8  # of AdamW

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}, but must lie in [0, 1)")
        if not 0 < self.ns_steps < 100:
            raise ValueError(f"ns_steps is {self.ns_steps}, but must lie between 1 and 99")
        if not 0 <= self.weight_decay < inf:
            raise ValueError(f"weight_decay is {self.weight_decay}, but must be finite and not negative")
        self._adamw = AdamW(betas=self.betas, eps=self.eps)

    @hookimpl
    def check(self, recipe: Recipe) -> list[Problem]:
        """Refuse a version of torch without Muon."""
        if tuple(map(int, version("torch").split(".")[:2])) >= (2, 9):
            return []
        key = next((key for key in recipe.optimizer if "muon" in key), "muon")
        what, fix = f"torch {version('torch')} has no Muon", "install torch 2.9 or later, or name `adamw`"
        return [Problem(what, "it came with torch 2.9", fix, ("optimizer", key))]

    @hookimpl
    def make_optimizer(self, groups: list[dict[str, Any]], model: nn.Module) -> torch.optim.Optimizer:
        """Return Muon and AdamW as one optimizer. Raises UsageError where no trainable parameter is a matrix."""
        ndims = {id(weight): weight.ndim for group in groups for weight in group["params"]}
        tables = {id(weight) for table in _tables(model) for weight in table.parameters()}
        matrices = {key for key, ndim in ndims.items() if ndim == 2} - tables
        if not matrices:
            raise UsageError(f"muon finds no matrix to train\nwhy: {WHY}\nfix: name `adamw`")
        names = ("momentum", "nesterov", "ns_steps", "adjust_lr_fn", "weight_decay")
        parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(_only(groups, matrices), **{name: getattr(self, name) for name in names})
        ]
        if rest := ndims.keys() - matrices:
            parts.append(self._adamw.make_optimizer(_only(groups, rest)))
        return CombinedOptimizer(parts)


def _tables(model: nn.Module) -> Iterator[nn.Module]:
    """Yield embeddings and the output head: their rows are vectors of tokens, so they are not orthogonalised."""
    yield from (module for module in model.modules() if isinstance(module, nn.Embedding))
    find: Any = getattr(model, "get_output_embeddings", None)
    if find is not None and find() is not None:
        yield find()


def _only(groups: list[dict[str, Any]], wanted: set[int]) -> list[dict[str, Any]]:
    """Return the groups, restricted to parameters whose `id` is wanted, without empty ones."""
    restricted = [
        {**group, "params": [weight for weight in group["params"] if id(weight) in wanted]} for group in groups
    ]
    return [group for group in restricted if group["params"]]


class CombinedOptimizer(torch.optim.Optimizer):
    """Several optimizers as one. It has their groups, the same dicts, so that a scheduler changes those of each."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        self._collect()

    def _collect(self) -> None:
        """Set groups and state from the parts."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        self.state = ChainMap(*(part.state for part in self.parts))  # type: ignore[assignment]

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step with each part."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each part."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of each part."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._collect()
