"""Importance of attention heads and channels, measured on text (Minitron, arXiv 2407.14679).

L tokens of a document, n equal parts of a module's input or output: heads, of several channels each, or channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class Measured:
    """A module whose input or output has `parts` = n equal parts to measure.

    input   of a linear layer: the size of a part is the norm of what it adds to the layer's output
    output  the size of a part is its norm
    """

    module: nn.Module
    side: Literal["input", "output"]
    parts: int

    def sizes(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the function (input, output) -> sizes of the parts [L, n]."""
        if self.side == "output":
            return lambda _, states: self._split(states).norm(dim=-1)
        weights = self._split(self.module.get_parameter("weight")).movedim(1, 0)  # [n, out, width]
        gram = weights.mT @ weights  # |W s|^2 = s W'W s, without a tensor [L, n, out]

        def added_norms(states: Tensor, _: Tensor) -> Tensor:
            parts = self._split(states).movedim(1, 0)  # [n, L, width]
            return (parts @ gram * parts).sum(-1).clamp(min=0).sqrt().mT

        return added_norms

    def _split(self, states: Tensor) -> Tensor:
        """[..., n x width] -> [L, n, width]."""
        return states.reshape(-1, self.parts, states.shape[-1] // self.parts)


@torch.no_grad()
def importance(
    model: PreTrainedModel, measured: Mapping[str, Measured], documents: Iterable[Tensor]
) -> dict[str, Tensor]:
    """Return the importance of the parts, float64 [n], by name.

    The sizes are averaged over the tokens of a document, then the L2 norm is taken over documents: Minitron's best
    aggregation. Unlike in Minitron, the size of a head is measured after `o_proj`.

    documents  each [1, L]
    """
    sums = {name: torch.zeros(part.parts, dtype=torch.float64) for name, part in measured.items()}

    def hook_of(total: Tensor, sizes: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            total.add_(sizes(args[0], output).double().mean(0) ** 2)

        return hook

    with ExitStack() as hooks:
        for name, part in measured.items():
            hooks.enter_context(part.module.register_forward_hook(hook_of(sums[name], part.sizes())))
        for document in documents:
            model.base_model(input_ids=document, use_cache=False)
    return {name: total.sqrt() for name, total in sums.items()}


def most_important(scores: Tensor, count: int) -> Tensor:
    """Return the indices of the `count` highest of `scores` [n], ascending; of equal ones the first."""
    return scores.sort(descending=True, stable=True).indices[:count].sort().values


def heads_to_keep(scores: Tensor, groups: int, keep: int, keep_groups: int) -> tuple[Tensor, Tensor]:
    """Return the query heads and the groups to keep, ascending: the same number of heads in each group.

    A group is a key-value head with its query heads. Its most important heads are kept; their sum is its importance.

    scores       [heads], the heads of a group adjacent
    groups       number of key-value heads
    keep         number of query heads to keep, a multiple of `keep_groups`
    keep_groups  number of key-value heads to keep
    """
    size, size_kept = len(scores) // groups, keep // keep_groups
    inside = torch.stack([most_important(group, size_kept) for group in scores.view(groups, size)])
    chosen = most_important(scores.view(groups, size).gather(1, inside).sum(1), keep_groups)
    return (chosen[:, None] * size + inside[chosen]).flatten(), chosen
