"""Store the teacher's k most probable tokens; the mass of all others is one bucket.

A loss that is a sum over tokens is then computed over k + 1 outcomes: k tokens, and any other token. This is biased: a
student learns nothing of how the teacher divides the bucket. `sampled` is unbiased for forward_kl, and smaller.
An entry takes the bits of its id and 16 of its probability.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from neoplug import EntriesSignal, SparseDistributions, hookimpl
from neoplug_teachers.compact import code_of, pack_ids, probability_of, unpack_ids
from neoplug_teachers.distributions import blocks, entropy

LEVELS = 2**16 - 1


@dataclass(eq=False)
class TopK:
    """Store the largest probabilities and the mass of the rest."""

    k: int = 64  # entries per token, at least 1; below the size of the vocabulary

    serves: ClassVar[str] = "buckets"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k is {self.k}, but must be at least 1")

    @hookimpl
    def encode_teacher(self, states: Tensor, logits: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Return `ids` as packed bits, `codes` [N, k] uint16 of the probabilities, and `entropy` [N] float16."""
        codes, ids, entropies, size = [], [], [], 0
        for log_p in blocks(states, logits):
            size = log_p.shape[-1]
            values, top = log_p.topk(min(self.k, size - 1))
            codes.append(code_of(values.exp(), LEVELS))
            ids.append(top)
            entropies.append(entropy(log_p))
        packed = pack_ids(torch.cat(ids).flatten(), size)
        return {
            "ids": packed,
            "codes": torch.cat(codes).to(torch.uint16),
            "entropy": torch.cat(entropies).half(),
        }

    @hookimpl
    def decode_teacher(self, stored: list[dict[str, Tensor]], head: Any) -> EntriesSignal:
        """Return a signal with k entries per token."""
        parts = []
        for document in stored:
            codes = document["codes"].to(torch.int64)
            ids = unpack_ids(document["ids"], codes.numel(), head.vocabulary.size).view(codes.shape)
            p = probability_of(codes, LEVELS).float()
            parts.append((ids, p, document["entropy"].float()))
        ids, p, entropies = (torch.cat(part) for part in zip(*parts, strict=True))
        rest = (1 - p.sum(-1, dtype=torch.float64)).clamp(min=0).float()
        return EntriesSignal(SparseDistributions(ids, p, entropies, rest))
