"""Store a sample of the teacher's distribution: about 40 bytes per token, unbiased for forward_kl at temperature 1.

A loss whose gradient is linear in the teacher's probabilities has, in expectation over the sample, its exact gradient
(`threshold_sampling`). With `bytes` the threshold is one for all tokens, so that a token whose teacher is certain has
few entries and one whose teacher is not has many: this minimises the noise for that mean size. The threshold is fitted
once, on the sample that `fit_cache` is given.

Per token: for each entry the bits of its id, for each head a byte of its probability, 2 bytes of the entropy, a byte of
the number of heads and, with `bytes`, one of the number of entries.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from neoplug import EntriesSignal, SparseDistributions, hookimpl
from neoplug_teachers.compact import bits_of, pack_ids, unpack_ids
from neoplug_teachers.distributions import blocks, entropy
from neoplug_teachers.threshold_sampling import MOST_ENTRIES, Sample, entries_at, heads_of, sample

FIXED = 4  # bytes of a token besides its entries: entropy, heads, entries


@dataclass(eq=False)
class Sampled:
    """Store entries drawn by threshold sampling, `entries` of them or as many as `bytes` have room for."""

    entries: int | None = None  # per token, from 2 to 255; 16 where `bytes` is not given either
    bytes: float | None = None  # mean bytes per answer token, at least 8; the entries then follow the teacher's entropy
    draws: int = 1  # samples of each document; epoch e reads sample e mod draws

    serves: ClassVar[str] = "linear"

    def __post_init__(self) -> None:
        if self.entries is not None and self.bytes is not None:
            raise ValueError("entries and bytes both set the size of a sample; keep one")
        if self.entries is not None and not 2 <= self.entries <= MOST_ENTRIES:
            raise ValueError(f"entries is {self.entries}, but must lie in 2 .. {MOST_ENTRIES}")
        if self.bytes is not None and not 8 <= self.bytes <= 1000:
            raise ValueError(f"bytes is {self.bytes}, but must lie in 8 .. 1000")
        if self.draws < 1:
            raise ValueError(f"draws is {self.draws}, but must be at least 1")

    @hookimpl
    def fit_cache(self, states: Tensor, logits: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the threshold at which the sample's tokens take `bytes` each in the mean; {} with `entries`."""
        if self.bytes is None:
            return {}
        tops, size = [], 0
        for log_p in blocks(states, logits):
            size = log_p.shape[-1]
            tops.append(log_p.exp().topk(min(MOST_ENTRIES, size)).values)
        largest = torch.cat(tops).double()
        low, high = 1e-6, 1.0  # the larger the threshold, the fewer entries
        for _ in range(50):
            middle = (low * high) ** 0.5
            low, high = (middle, high) if _bytes_at(largest, middle, size) > self.bytes else (low, middle)
        return {"threshold": high}

    @hookimpl
    def encode_teacher(
        self, states: Tensor, logits: Callable[[Tensor], Tensor], fitted: dict[str, float], rng: Generator
    ) -> dict[str, Tensor]:
        """Return `ids` as packed bits, `codes` of all heads, `heads` [N], `entropy` [N]; with `bytes` `entries` [N]."""
        drawn, entropies, size = [], [], 0
        for log_p in blocks(states, logits):
            p, size = log_p.exp(), log_p.shape[-1]
            drawn.append(sample(p, self._entries_of(p, fitted), rng))
            entropies.append(entropy(log_p))
        ids = torch.cat([part.ids[part.is_entry] for part in drawn])
        stored = {
            "ids": pack_ids(ids, size),
            "codes": torch.cat([part.codes[part.is_head] for part in drawn]).to(torch.uint8),
            "heads": torch.cat([part.heads for part in drawn]).to(torch.uint8),
            "entropy": torch.cat(entropies).half(),
        }
        if self.bytes is not None:
            stored["entries"] = torch.cat([part.entries for part in drawn]).to(torch.uint8)
        return stored

    @hookimpl
    def decode_teacher(self, stored: list[dict[str, Tensor]], head: Any) -> EntriesSignal:
        """Return a signal with as many entries as the token with the most has; the rest is filled with zeros."""
        size, parts = head.vocabulary.size, []
        for document in stored:
            heads = document["heads"].long()
            entries = document["entries"].long() if "entries" in document else self._same_entries(len(heads), size)
            parts.append((unpack_ids(document["ids"], int(entries.sum()), size), document["codes"], heads, entries))
        drawn = Sample.of(*(torch.cat(part) for part in zip(*parts, strict=True)))
        entropies = torch.cat([document["entropy"].float() for document in stored])
        return EntriesSignal(SparseDistributions(drawn.ids, drawn.probabilities(), entropies))

    def _entries_of(self, p: Tensor, fitted: dict[str, float]) -> Tensor:
        """Return [n] int64: the number of entries of each token."""
        size = p.shape[-1]
        if self.bytes is None:
            return self._same_entries(len(p), size)
        return entries_at(p.topk(min(MOST_ENTRIES, size)).values, fitted["threshold"]).clamp(max=size)

    def _same_entries(self, tokens: int, vocabulary: int) -> Tensor:
        return torch.full((tokens,), min(self.entries or 16, vocabulary))


def _bytes_at(largest: Tensor, threshold: float, vocabulary: int) -> float:
    """Return the mean bytes of tokens with these largest probabilities [n, K], descending, at a threshold."""
    entries = entries_at(largest, threshold).clamp(max=vocabulary)
    heads = heads_of(largest, entries)
    return float((entries * bits_of(vocabulary) / 8 + heads).mean()) + FIXED
