"""`check_cache`: it passes correct kinds, and names what is wrong with others by property and smallest document.

N answer tokens, V vocabulary, K entries.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch

from neoplug import EntriesSignal, SparseDistributions, StatesSignal, hookimpl
from neoplug.testing import CACHE, check_cache, examine


def broken(kind):
    """Return {property: how it fails} of those that do not hold."""
    return {finding.name: finding.why for finding in examine(kind, CACHE) if finding.verdict == "does not hold"}


@dataclass(eq=False)
class Dense:
    """A correct kind that stores all probabilities but that of the last token, which is the rest."""

    serves: ClassVar = "buckets"

    def scores(self, states, logits):
        return torch.cat([logits(part).clone() for part in states.split(64)])

    @hookimpl
    def encode_teacher(self, states, logits):
        p = self.scores(states, logits).double().softmax(-1)
        values, ids = p.sort(descending=True)
        return {"ids": ids[:, :-1], "p": values[:, :-1].float(), "entropy": torch.special.entr(p).sum(-1).float()}

    @hookimpl
    def decode_teacher(self, stored):
        ids, p, entropy = (torch.cat([document[name] for document in stored]) for name in ("ids", "p", "entropy"))
        rest = (1 - p.double().sum(-1)).clamp(min=0).float()
        return EntriesSignal(SparseDistributions(ids, p, entropy, rest))


@dataclass(eq=False)
class Drawn(Dense):
    """A correct sample: K tokens drawn with replacement, each with 1 / K, after the most probable one with nothing."""

    draws: int = 2
    entries: int = 6

    serves: ClassVar = "linear"

    def drawn(self, p, rng):
        return torch.multinomial(p, self.entries, replacement=True, generator=rng)

    @hookimpl
    def encode_teacher(self, states, logits, rng):
        p = self.scores(states, logits).double().softmax(-1)
        ids = torch.cat([p.argmax(-1, keepdim=True), self.drawn(p, rng)], -1)
        return {"ids": ids, "entropy": torch.special.entr(p).sum(-1).float()}

    @hookimpl
    def decode_teacher(self, stored):
        ids, entropy = (torch.cat([document[name] for document in stored]) for name in ("ids", "entropy"))
        p = torch.full(ids.shape, 1 / (ids.shape[1] - 1)).index_fill(1, torch.tensor([0]), 0)
        return EntriesSignal(SparseDistributions(ids, p, entropy))


@dataclass(eq=False)
class Whole:
    """A correct kind that stores hidden states."""

    serves: ClassVar = "full"

    @hookimpl
    def encode_teacher(self, states):
        return {"states": states}

    @hookimpl
    def decode_teacher(self, stored, head):
        return StatesSignal(torch.cat([document["states"] for document in stored]), head)


def entries_with(**changes):
    """Return a kind like Dense, with a function of the entries in place of each of these parts."""

    class Changed(Dense):
        @hookimpl
        def decode_teacher(self, stored):
            entries = Dense.decode_teacher(self, stored).entries
            parts = {name: getattr(entries, name) for name in ("ids", "probabilities", "entropy", "rest")}
            return EntriesSignal(SparseDistributions(**parts | {name: of(entries) for name, of in changes.items()}))

    return Changed


class Renormalised(Drawn):
    """The most probable tokens alone, as if they were a sample."""

    def drawn(self, p, rng):
        torch.rand(1, generator=rng)
        return p.topk(self.entries).indices


class Global(Drawn):
    def drawn(self, p, rng):
        return torch.multinomial(p, self.entries, replacement=True)


class TheSameDraw(Drawn):
    def drawn(self, p, rng):
        return super().drawn(p, torch.Generator().manual_seed(0))


class HoldsABuffer(Dense):
    """It keeps what `logits` returned, which the next call overwrites."""

    def scores(self, states, logits):
        return torch.cat([logits(part) for part in states.split(50)])


class OtherRows(Dense):
    """The teacher's own rows in place of the shared ones."""

    def scores(self, states, logits):
        return states[:, : logits(states).shape[1]]


class Views(Whole):
    @hookimpl
    def encode_teacher(self, states):
        return {"states": states, "last": states[-1:]}


class Writes(Whole):
    @hookimpl
    def encode_teacher(self, states):
        return {"states": states.mul_(1.0).add_(1.0)}


@dataclass(eq=False)
class Counts(Whole):
    """It remembers what it encoded, as no other process does."""

    seen: list = field(default_factory=list, init=False)

    @hookimpl
    def encode_teacher(self, states):
        self.seen.append(states)
        return {"number": torch.tensor([len(self.seen) - 1])}

    @hookimpl
    def decode_teacher(self, stored, head):
        return StatesSignal(torch.cat([self.seen[int(document["number"])] for document in stored]), head)


class Sorted(Whole):
    """Documents in another order than that of the batch."""

    @hookimpl
    def decode_teacher(self, stored, head):
        return StatesSignal(torch.cat(sorted((one["states"] for one in stored), key=len)), head)


class OfTheFirst(Whole):
    @hookimpl
    def decode_teacher(self, stored, head):
        return StatesSignal(stored[0]["states"], head)


class Pairs(Whole):
    """What it stores grows with the square of a document's length."""

    @hookimpl
    def encode_teacher(self, states):
        return {"states": states, "pairs": states @ states.t()}


class OneBit(Whole):
    @hookimpl
    def encode_teacher(self, states):
        return {"states": states.sign()}


class Coarse(OneBit):
    exempt: ClassVar = {"close": "the signs are enough for its losses"}


class Unserved(Whole):
    serves: ClassVar = None


class SaysFull(Dense):
    serves: ClassVar = "full"


class SaysLinear(Dense):
    serves: ClassVar = "linear"


@dataclass(eq=False)
class Undecoded:
    serves: ClassVar = "full"

    @hookimpl
    def encode_teacher(self, states):
        return {"states": states}


class FitsByChance(Whole):
    @hookimpl
    def fit_cache(self):
        return {"level": torch.rand(()).item()}


class FitsNothing(Whole):
    @hookimpl
    def fit_cache(self, states):
        return {"level": float("nan") + len(states)}


@pytest.mark.parametrize("kind", [Dense(), Drawn(), Drawn(1, 1), Whole(), Coarse()], ids=repr)
def test_correct_kinds_pass(kind):
    check_cache(kind)


@pytest.mark.parametrize(
    ("kind", "faults"),
    [
        (entries_with(probabilities=lambda e: e.probabilities / 2), {"mass": "add up to", "close": "a token: it is"}),
        (entries_with(probabilities=lambda e: e.probabilities.double()), {"signal": "`probabilities` is [1, 23] of"}),
        (entries_with(ids=lambda e: e.ids.flip(-1)), {"ids": "a token: the first entry is not", "close": "is off by"}),
        (entries_with(entropy=lambda e: e.entropy / 0.6931), {"entropy": "a token: an entropy is"}),
        (entries_with(rest=lambda e: None), {"signal": "its entries have no mass of the rest"}),
        (HoldsABuffer, {"close": "a long document: it is off by"}),
        (Renormalised, {"unbiased": "a token of the probability"}),
        (Global, {"repeated": "a token: the same generator gives another record"}),
        (TheSameDraw, {"repeated": "another generator gives the same record", "unbiased": "in the mean of"}),
        (OtherRows, {"close": "it is off by"}),
        (Views, {"stored": "no file can hold"}),
        (Writes, {"untouched": "writes into `states`"}),
        (
            Counts,
            {"stored": "a token: the plugin `Counts` failed in `decode_teacher`", "repeated": "a token: the same"},
        ),
        (Sorted, {"documents": "three tokens and a token: decoded together"}),
        (OfTheFirst, {"documents": "there are 1 answer tokens in place of 4"}),
        (Pairs, {"planned": "are planned"}),
        (OneBit, {"close": "a token: it is off by"}),
        (Unserved, {"signal": "its `serves` is None"}),
        (SaysFull, {"signal": "its signal provides sparse"}),
        (SaysLinear, {"signal": "its entries have the mass of the rest"}),
        (Undecoded, {"signal": "it has no `decode_teacher`"}),
        (FitsByChance, {"fitted": "for the same states it fits"}),
        (FitsNothing, {"fitted": "it fits"}),
    ],
)
def test_faults_of_caches(kind, faults):
    found = broken(kind())
    assert faults.keys() <= found.keys(), found
    assert all(part in found[name] or found[name].startswith(part) for name, part in faults.items()), found


def test_check_cache_raises_with_the_fault():
    with pytest.raises(AssertionError, match="a token: it is off by"):
        check_cache(OneBit())
    with pytest.raises(TypeError, match="no `encode_teacher`"):
        check_cache(object())
