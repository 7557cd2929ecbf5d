"""A stored teacher without data: its signals have the shapes of those that the recipe's kind of cache decodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from neoplug.models.head import Head
from neoplug.models.load import load_config
from neoplug.recipe.cache_checks import SECTION
from neoplug.registry.teacher_reads import serves
from neoplug.runs.teacher_cost import kind_plugins
from neoplug.teachers.base import SparseDistributions
from neoplug.teachers.cached import CachedTeacher
from neoplug.teachers.signals import EntriesSignal, StatesSignal

if TYPE_CHECKING:
    from neoplug.data.batch import Batch
    from neoplug.models.reference import ResolvedModel
    from neoplug.models.vocabulary import Vocabulary
    from neoplug.recipe import ResolvedRecipe


@dataclass(eq=False)
class StoredShapes(CachedTeacher):
    """A `CachedTeacher` that reads nothing: its signals have the form of `sample`.

    Like that of a run, it holds the signal of one batch while the next is prefetched.
    """

    sample: StatesSignal | EntriesSignal = field(kw_only=True)
    _next: StatesSignal | EntriesSignal | None = field(default=None, init=False)

    def signal(self, batch: Batch) -> StatesSignal | EntriesSignal:
        """Return a signal for the answer tokens of a batch."""
        prefetched, self._next = self._next, None
        return prefetched or self._shaped(batch.answer_tokens)

    def prefetch(self, batch: Batch) -> None:
        """Make the signal of the next batch."""
        self._next = self._shaped(batch.answer_tokens)

    def tensors(self) -> list[Tensor]:
        """Return what is in memory of the teacher: its head."""
        return list(self.head.module.parameters())

    def _shaped(self, tokens: int) -> StatesSignal | EntriesSignal:
        def like(part: Tensor) -> Tensor:
            return torch.zeros(tokens, *part.shape[1:], dtype=part.dtype, device=self.device)

        if isinstance(self.sample, StatesSignal):
            return StatesSignal(like(self.sample.states), self.head)
        parts = self.sample.entries
        rest = None if parts.rest is None else like(parts.rest)
        return EntriesSignal(SparseDistributions(like(parts.ids), like(parts.probabilities), like(parts.entropy), rest))


def stored_shapes(
    checked: ResolvedRecipe, teacher: ResolvedModel, dtype: torch.dtype, vocabulary: Vocabulary, device: torch.device,
    sample: StatesSignal | EntriesSignal,
) -> StoredShapes:  # fmt: skip
    """Return the stored teacher of a recipe, of which the head is in memory.

    sample  from `teacher_cost.decoded_sample`
    """
    config = load_config(teacher, ("teacher", "model")).get_text_config()
    linear = nn.Linear(config.hidden_size, config.vocab_size, bias=False, device=device, dtype=dtype)
    (kind,) = kind_plugins(checked).section(SECTION).values()
    unread: Any = None
    return StoredShapes(
        header=unread, train=unread, held_out=unread, decode=unread,
        head=Head(linear.requires_grad_(False), vocabulary), serves=serves(kind), sample=sample,
    )  # fmt: skip


def hidden_size(teacher: ResolvedModel) -> int:
    """Return the size of a teacher's hidden states."""
    return int(load_config(teacher, ("teacher", "model")).get_text_config().hidden_size)
