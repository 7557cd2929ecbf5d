"""The size of a teacher's cache, on disk and of what a run holds of it in memory, estimated without the teacher.

The kind of cache encodes and decodes random distributions of the teacher's sizes. Its bytes may depend on how certain
the teacher is; `neoplug cache` measures them on the recipe's own text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from neoplug.models.head import Head
from neoplug.models.vocabulary import Vocabulary
from neoplug.recipe.cache_checks import SECTION
from neoplug.runs.cache_folder import stored_kind
from neoplug.teachers.cache_files import EXACT

if TYPE_CHECKING:
    from neoplug.recipe import ResolvedRecipe
    from neoplug.registry import Plugins

SAMPLE = (64, 128)  # answer tokens of the documents that are encoded
SCALE = 4.0  # standard deviation of the random logits
INDEX_BYTES = 40  # of a document, besides its records: its hash, and where a record ends


@dataclass(frozen=True)
class CacheCost:
    """Bytes of a cache.

    per_token     of an answer token on disk, in all draws
    per_document  of a document on disk, besides its tokens
    decoded       of an answer token in memory, as losses read it
    """

    per_token: float
    per_document: float
    decoded: float

    def on_disk(self, tokens: float, documents: float) -> int:
        """Return the bytes of documents with so many answer tokens in all."""
        return round(self.per_token * tokens + self.per_document * documents)


def estimate_cost(checked: ResolvedRecipe, hidden_size: int, vocabulary: int) -> CacheCost:
    """Return the cost of the recipe's kind of cache, for a teacher of these sizes."""
    folder = checked.plugins.one("cache_folder")
    return cost_of(checked.plugins if folder is None else stored_kind(checked, folder)[1], hidden_size, vocabulary)


def cost_of(plugins: Plugins, hidden_size: int, vocabulary: int) -> CacheCost:
    """Return the cost of the kind of cache among these plugins, for a teacher of these sizes."""
    rng = torch.Generator().manual_seed(0)

    def logits(states: Tensor) -> Tensor:
        return torch.randn(len(states), vocabulary, generator=rng) * SCALE

    states = torch.randn(max(SAMPLE), hidden_size, generator=rng)
    fitted = plugins.one("fit_cache", states=states, logits=logits) or {}
    records: list[dict[str, Any]] = [
        plugins.one("encode_teacher", states=states[:tokens], logits=logits, fitted=fitted, rng=rng)
        for tokens in SAMPLE
    ]
    sizes = [len(save({name: part.contiguous() for name, part in record.items()})) for record in records]
    draws = getattr(next(iter(plugins.section(SECTION).values())), "draws", 1)
    per_token = (sizes[1] - sizes[0]) / (SAMPLE[1] - SAMPLE[0])
    head = Head(nn.Linear(hidden_size, vocabulary, bias=False, device="meta"), Vocabulary(vocabulary))
    signal = plugins.one("decode_teacher", stored=records[-1:], head=head, fitted=fitted)
    return CacheCost(
        per_token=draws * per_token,
        per_document=draws * (sizes[0] - per_token * SAMPLE[0]) + INDEX_BYTES,
        decoded=signal.nbytes / SAMPLE[1],
    )


def held_out_cost(hidden_size: int) -> CacheCost:
    """Return the cost of held-out documents, which are stored as float32 states."""
    empty = len(save({EXACT: torch.zeros(0, hidden_size)}))
    return CacheCost(4.0 * hidden_size, empty + INDEX_BYTES, 4.0 * hidden_size)
