"""How much the parts of a layer's width carry, measured on text (Minitron, arXiv 2407.14679).

L tokens of a document; n parts of what a module reads or returns: heads, each of several numbers, or single channels.
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
class Watched:
    """A module and `parts` = n equal parts of what it reads or returns.

    reads    a linear layer's input: a part is as long as what it adds to the output
    returns  a part is as long as itself
    """

    module: nn.Module
    side: Literal["reads", "returns"]
    parts: int

    def lengths(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the function (input, output) -> lengths [L, n]."""
        if self.side == "returns":
            return lambda _, states: self._split(states).norm(dim=-1)
        weights = self._split(self.module.get_parameter("weight")).movedim(1, 0)  # [n, out, width]
        gram = weights.mT @ weights  # |W s|^2 = s W'W s: no [L, n, out] is ever held

        def added(states: Tensor, _: Tensor) -> Tensor:
            parts = self._split(states).movedim(1, 0)  # [n, L, width]
            return (parts @ gram * parts).sum(-1).clamp(min=0).sqrt().mT

        return added

    def _split(self, states: Tensor) -> Tensor:
        """[..., n x width] -> [L, n, width]."""
        return states.reshape(-1, self.parts, states.shape[-1] // self.parts)


@torch.no_grad()
def importance(
    model: PreTrainedModel, watched: Mapping[str, Watched], documents: Iterable[Tensor]
) -> dict[str, Tensor]:
    """Return under each name the importance [n] of the parts, float64.

    That is the L2 norm over documents of the mean over a document's tokens of a part's length: Minitron's best
    aggregation. Where Minitron takes a head's output as it is, it counts here by what `o_proj` makes of it.

    documents  each [1, L]
    """
    sums = {name: torch.zeros(part.parts, dtype=torch.float64) for name, part in watched.items()}

    def watch(total: Tensor, lengths: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple, output: Any) -> None:
            total.add_(lengths(args[0], output).double().mean(0) ** 2)

        return note

    with ExitStack() as hooks:
        for name, part in watched.items():
            hooks.enter_context(part.module.register_forward_hook(watch(sums[name], part.lengths())))
        for document in documents:
            model.base_model(input_ids=document, use_cache=False)
    return {name: total.sqrt() for name, total in sums.items()}


def most_important(scores: Tensor, count: int) -> Tensor:
    """Return the indices of the `count` highest of `scores` [n], ascending; of equal ones the first."""
    return scores.sort(descending=True, stable=True).indices[:count].sort().values


def heads_to_keep(scores: Tensor, groups: int, keep: int, keep_groups: int) -> tuple[Tensor, Tensor]:
    """Return the query heads and the groups to keep, ascending: as many heads of each group, its most important ones.

    A group is a key-value head with the query heads that read it, and counts as much as those of them that would stay.

    scores       [heads], those of a group adjacent
    keep         query heads in all, a multiple of `keep_groups`
    """
    size, size_kept = len(scores) // groups, keep // keep_groups
    inside = torch.stack([most_important(group, size_kept) for group in scores.view(groups, size)])
    chosen = most_important(scores.view(groups, size).gather(1, inside).sum(1), keep_groups)
    return (chosen[:, None] * size + inside[chosen]).flatten(), chosen
