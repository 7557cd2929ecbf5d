"""Threshold sampling of the teacher's distribution: few entries per token, unbiased for losses that are linear in it.

For each token, tau solves sum_i min(1, p_i / tau) = k. Entries with p_i >= tau, the heads, are kept with their
probability. Of the others, m = k - heads are drawn in one systematic pass with one uniform offset per token, entry i
with probability p_i / tau; each has the value tau = (1 - stored heads) / m, so that the mass is 1 and tau itself needs
no storage. The expectation over draws is p. The noise of a token, the sum of the variances of its entries, is tau times
the mass of its tail; for a given mean number of entries the total noise is smallest where all tokens have the same tau.

This is probability-proportional-to-size sampling with a certainty stratum (Sarndal, Swensson, Wretman 1992, section
3.6); its systematic form is that of Madow 1949, "On the theory of systematic sampling, II".

n tokens, V vocabulary, K the largest number of entries of a token.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from neoplug_teachers.compact import code_of, probability_of

LEVELS = 255  # of a head's code, a byte
MOST_ENTRIES = 255  # of a token: their number is stored in a byte


@dataclass(frozen=True, eq=False)
class Sample:
    """The entries of n tokens, heads first.

    ids      [n, K] int64: indices in the vocabulary; beyond a token's entries they are 0
    codes    [n, K] int64: codes of the heads' probabilities; 0 elsewhere
    heads    [n] int64: how many of the entries are heads
    entries  [n] int64: how many entries a token has, at least 2
    """

    ids: Tensor
    codes: Tensor
    heads: Tensor
    entries: Tensor

    @classmethod
    def of(cls, ids: Tensor, codes: Tensor, heads: Tensor, entries: Tensor) -> Self:
        """Return the sample whose entries are given token by token: `ids` of all entries, `codes` of the heads."""
        empty = torch.zeros(len(entries), int(entries.max()) if len(entries) else 0, dtype=torch.int64)
        whole = cls(empty, empty.clone(), heads, entries)
        whole.ids[whole.is_entry] = ids
        whole.codes[whole.is_head] = codes.long()
        return whole

    @property
    def is_head(self) -> Tensor:
        """Return [n, K] bool."""
        return self._column < self.heads[:, None]

    @property
    def is_entry(self) -> Tensor:
        """Return [n, K] bool."""
        return self._column < self.entries[:, None]

    @property
    def _column(self) -> Tensor:
        return torch.arange(self.ids.shape[1], device=self.ids.device)

    def probabilities(self) -> Tensor:
        """Return [n, K] float32: the value of each entry, 0 beyond a token's entries; each row adds up to 1.

        Heads are rounded at random, so a tail of almost no mass may have a negative value.
        """
        of_heads = probability_of(self.codes, LEVELS)
        tail = (1 - of_heads.sum(-1)) / (self.entries - self.heads)
        return torch.where(self.is_entry & ~self.is_head, tail[:, None], of_heads).float()


def entries_at(largest: Tensor, threshold: float) -> Tensor:
    """Return [n] int64: how many entries each token has where the threshold tau is the same for all of them.

    largest  [n, K] the largest probabilities, descending; of entries above the threshold there are at most K
    """
    head = largest.double().clamp(max=threshold)
    rest = 1 - largest.sum(-1, dtype=torch.float64)
    expected = (head.sum(-1) + rest) / threshold
    return (expected - 1e-6).ceil().long().clamp(2, MOST_ENTRIES)


def sample(p: Tensor, entries: Tensor, rng: torch.Generator) -> Sample:
    """Draw entries of the distributions `p`.

    p        [n, V] float32 probabilities
    entries  [n] int64: how many entries each token gets, from 2 to V
    rng      on the CPU, where the offsets are drawn
    """
    p = p.double()
    p = p / p.sum(-1, keepdim=True)
    largest, ids = p.topk(int(entries.max()), dim=-1)
    heads = heads_of(largest, entries)
    column = torch.arange(largest.shape[1], device=p.device)
    is_head = column < heads[:, None]
    tail = p.scatter(-1, ids, largest.masked_fill(is_head, 0))
    drawn = _systematic(tail, (entries - heads), largest.shape[1], rng)
    index = (column - heads[:, None]).clamp(min=0)
    is_entry = column < entries[:, None]
    ids = torch.where(is_head, ids, drawn.gather(-1, index)).masked_fill(~is_entry, 0)
    offset = torch.rand(largest.shape, generator=rng, dtype=torch.float64).to(p.device)
    codes = code_of(largest, LEVELS, offset).masked_fill(~is_head, 0)
    return Sample(ids, codes, heads, entries)


def heads_of(largest: Tensor, entries: Tensor) -> Tensor:
    """Return [n] int64: the number of heads, the smallest j >= 1 with p_(j+1) <= tau_j = tail_j / (entries - j).

    largest  [n, K] float64: the largest probabilities, descending; tail_j is the mass beyond the first j
    """
    column = torch.arange(largest.shape[1], device=largest.device)
    tail = 1 - largest.cumsum(-1) + largest
    left = entries[:, None] - column
    enough = (largest * left <= tail * (1 + 1e-9)) & (column > 0) & (left > 0)
    return torch.where(enough.any(-1), enough.double().argmax(-1), entries - 1)  # rounding may hide the solution


def _systematic(tail: Tensor, draws: Tensor, most: int, rng: torch.Generator) -> Tensor:
    """Return [n, most] int64: for each token `draws` indices in its vocabulary, at equal distances of cumulated mass.

    tail   [n, V] float64: the mass that is drawn from; 0 for heads
    draws  [n] int64; columns beyond them mean nothing
    """
    cumulated = tail.cumsum(-1)
    offset = torch.rand(len(tail), 1, generator=rng, dtype=torch.float64).to(tail.device)
    points = (torch.arange(most, device=tail.device) + offset) / draws[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, points, right=True).clamp(max=tail.shape[1] - 1)
