"""Conformance tests of kinds of teachers' caches, on teachers that are certain, undecided, and between the two.

    from neoplug.testing import check_cache

    def test_mine():
        check_cache(Mine())

N answer tokens of a document, V shared vocabulary, H the teacher's hidden size, K entries of a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor

from neoplug.recipe.cache_checks import SECTION
from neoplug.registry import Plugins
from neoplug.registry.teacher_reads import LEVELS
from neoplug.runs.teacher_cost import SCALE, cost_of
from neoplug.teachers.base import LOGITS, SPARSE, LogitsSignal, Signal, SparseDistributions, SparseSignal
from neoplug.teachers.cache_files import Shards, ShardWriter
from neoplug.testing.hooks import global_seeds
from neoplug.testing.loss_examples import hook
from neoplug.testing.search import Broken, Kit, NotApplicable, as_broken, properties_of
from neoplug.testing.stored_documents import (
    DOCUMENTS,
    HIDDEN,
    LONG,
    SIZE,
    Stored,
    bytes_of,
    random_logits,
    states_of,
)

ALL = slice(None)
CLOSE = 0.05  # in total variation, and of an entropy
MASS = 1e-3  # by which stored probabilities may add up to something else than 1
DRAWS, COPIES, DEVIATIONS = 24, 128, 7.0  # of a sample, and copies of each token in it; standard errors of their mean
PLANNED = 1024  # answer tokens of a document whose size is planned


def check_cache(kind: Any) -> None:
    """Test every property of kinds of teachers' caches that implement `encode_teacher`.

    Raises AssertionError for a property that does not hold, with the smallest of the kit's documents that breaks it.
    """
    CACHE.hold(kind, 0)


class CacheProperties:
    """The properties of kinds of caches: each method without underscore, which raises Broken where it does not hold."""

    def signal(self, kind: Any) -> None:
        """It gives what it `serves`: logits, entries with the mass of the rest, or a sample of entries."""
        served, of = getattr(kind, "serves", None), Stored(kind)
        if served not in LEVELS[1:]:
            raise Broken(f"its `serves` is {served!r}, and not one of {', '.join(LEVELS[1:])}")
        for name, logits in DOCUMENTS.items():
            with _naming(name):
                signal = of.signal(logits)
                needed = LOGITS if served == "full" else SPARSE
                if needed not in signal.provides:
                    raise Broken(f"it serves {served!r}, but its signal provides {', '.join(sorted(signal.provides))}")
                if served == "full":
                    found = cast(LogitsSignal, signal).logits(ALL)
                    _validate("logits", found, (len(logits), SIZE), torch.float32)
                    continue
                entries = cast(SparseSignal, signal).sparse(ALL)
                _validate_entries(entries, len(logits))
                if (entries.rest is None) != (served == "linear"):
                    which = "no mass of the rest" if entries.rest is None else "the mass of the rest"
                    raise Broken(f"it serves {served!r}, but its entries have {which}")

    def mass(self, kind: Any) -> None:
        """The probabilities of its entries, and of the rest, add up to 1."""
        for name, entries in _all_entries(kind):
            total = entries.probabilities.double().sum(-1)
            total = total if entries.rest is None else total + entries.rest
            with _naming(name):
                if not ((total - 1).abs() <= MASS).all():
                    raise Broken(f"they add up to {float(total[(total - 1).abs().argmax()]):.6g}")
                if entries.rest is not None and ((entries.probabilities < 0).any() or (entries.rest < 0).any()):
                    raise Broken("one of them is below 0")

    def ids(self, kind: Any) -> None:
        """Its entries are shared tokens, the most probable one first; only a sample has a token twice."""
        for name, entries in _all_entries(kind):
            p = DOCUMENTS[name].double().softmax(-1)
            with _naming(name):
                outside = (entries.ids < 0) | (entries.ids >= SIZE)
                if outside.any():
                    raise Broken(f"an id is {int(entries.ids[outside][0])}, and the vocabulary has {SIZE} tokens")
                if (p.gather(-1, entries.ids[:, :1])[:, 0] < p.amax(-1) - 1e-5).any():
                    raise Broken("the first entry is not the most probable token")
                used = [row[has].tolist() for row, has in zip(entries.ids, entries.probabilities != 0, strict=True)]
                if entries.rest is not None and any(len(set(row)) < len(row) for row in used):
                    raise Broken("a token has two entries")

    def close(self, kind: Any) -> None:
        """What is no sample is the teacher's distribution, up to 0.05 in total variation."""
        if getattr(kind, "serves", None) == "linear":
            raise NotApplicable("it stores a sample")
        of = Stored(kind)
        for name, logits in DOCUMENTS.items():
            signal, p = of.signal(logits), logits.double().softmax(-1)
            if LOGITS in signal.provides:
                found = cast(LogitsSignal, signal).logits(ALL).double().softmax(-1)
            else:
                entries = cast(SparseSignal, signal).sparse(ALL)
                p, found = _with_rest(p.gather(-1, entries.ids)), _with_rest(entries.probabilities.double())
            off = (found - p).abs().sum(-1) / 2
            if not (off <= CLOSE).all():
                with _naming(name):
                    raise Broken(f"it is off by {float(off.max()):.3g}")

    def unbiased(self, kind: Any) -> None:
        """The mean of many samples is the teacher's distribution."""
        if getattr(kind, "serves", None) != "linear":
            raise NotApplicable("it stores no sample")
        of = Stored(kind)
        short = {name: logits for name, logits in DOCUMENTS.items() if logits is not LONG}
        names, logits = [name for name in short for _ in short[name]], torch.cat([*short.values()])
        means = []
        for draw in range(DRAWS):
            entries = cast(SparseSignal, of.signal(logits.repeat_interleave(COPIES, 0), draw)).sparse(ALL)
            dense = torch.zeros(len(logits) * COPIES, SIZE, dtype=torch.float64)
            dense.scatter_add_(-1, entries.ids, entries.probabilities.double())
            means.append(dense.reshape(-1, COPIES, SIZE).mean(1))
        samples, p = torch.stack(means), logits.double().softmax(-1)
        found, error = samples.mean(0), DEVIATIONS * samples.std(0) / DRAWS**0.5 + MASS
        for row, token in ((found - p).abs() > error).nonzero().tolist():
            with _naming(names[row]):
                what = f"a token of the probability {float(p[row, token]):.4g} has"
                raise Broken(f"{what} {float(found[row, token]):.4g} in the mean of {DRAWS * COPIES} samples")

    def entropy(self, kind: Any) -> None:
        """Its entropies are those of the teacher's whole distributions, in nats."""
        for name, entries in _all_entries(kind):
            expected = torch.special.entr(DOCUMENTS[name].double().softmax(-1)).sum(-1)
            off = (entries.entropy - expected).abs() / (1 + expected)
            if not (off <= CLOSE).all():
                worst = int(off.argmax())
                with _naming(name):
                    raise Broken(f"an entropy is {float(entries.entropy[worst]):.4g}, not {float(expected[worst]):.4g}")

    def repeated(self, kind: Any) -> None:
        """A record depends on document and generator alone; each of its `draws` is another sample."""
        draws, of = getattr(kind, "draws", 1), Stored(kind)
        if not isinstance(draws, int) or draws < 1:
            raise Broken(f"`draws` is {draws!r}, and not a whole number from 1")
        for name, logits in DOCUMENTS.items():
            records = []
            for number in range(2):
                with global_seeds(number):
                    records.append(of.record(logits))
                of.record(LONG, draw=number)  # another document
            with _naming(name):
                if bytes_of(records[0]) != bytes_of(records[1]):
                    raise Broken("the same generator gives another record")
        if draws > 1 and bytes_of(of.record(LONG)) == bytes_of(of.record(LONG, draw=1)):
            raise Broken(f"it has {draws} draws, but another generator gives the same record: take `rng`")

    def stored(self, kind: Any) -> None:
        """Another instance decodes it from the files of a cache."""
        of, reader = Stored(kind), Stored(replace(kind))
        records = {name: of.record(logits) for name, logits in DOCUMENTS.items()}
        keys = {name: f"{number:064x}" for number, name in enumerate(records)}
        with TemporaryDirectory() as folder:
            writer = ShardWriter(Path(folder), "header")
            for name, record in records.items():
                with _naming(name):
                    bytes_of(record)
                writer.add(keys[name], [record], len(DOCUMENTS[name]))
            writer.flush()
            shards = Shards(Path(folder), "header")
            read = {name: shards.records([key], 0) for name, key in keys.items()}
        for name, record in records.items():
            with _naming(name):
                _compare(_dense(reader.decoded(read[name])), _dense(of.decoded([record])), "read from a file")

    def documents(self, kind: Any) -> None:
        """Documents that are decoded together are as each of them alone, one after the other."""
        of = Stored(kind)
        for names in (["a token", "three tokens"], ["three tokens", "a token"], list(DOCUMENTS)):
            records = [of.record(DOCUMENTS[name]) for name in names]
            alone = torch.cat([_dense(of.decoded([record])) for record in records])
            with _naming(" and ".join(names) if len(names) < len(DOCUMENTS) else "all documents"):
                _compare(_dense(of.decoded(records)), alone, "decoded together")

    def selected(self, kind: Any) -> None:
        """Any of the answer tokens can be selected, also none, and read block by block."""
        whole: Any = Stored(kind).signal(LONG)
        dense = _dense(whole)
        blocks = [_dense(whole, slice(first, first + 50)) for first in range(0, len(LONG), 50)]
        _compare(torch.cat(blocks), dense, "read in blocks of 50 tokens")
        for kept in (torch.tensor([3, 0, 70]), torch.zeros(0, dtype=torch.int64)):
            _compare(_dense(whole.select(kept)), dense[kept], f"{len(kept)} tokens that are selected")

    def untouched(self, kind: Any) -> None:
        """It writes neither into the teacher's states, which every draw reads, nor into what is stored."""
        of, states = Stored(kind), states_of(LONG)
        record = of.encoded(states)
        if not torch.equal(states, states_of(LONG)):
            raise Broken("`encode_teacher` writes into `states`")
        before = bytes_of(record)
        of.decoded([record])
        if bytes_of(record) != before:
            raise Broken("`decode_teacher` writes into `stored`")

    def fitted(self, kind: Any) -> None:
        """What it fits are finite numbers that depend on the given states alone."""
        if hook(kind, "fit_cache") is None:
            raise NotApplicable("it has no `fit_cache`")
        found = []
        for number in range(2):
            with global_seeds(number):
                found.append(Stored(replace(kind)).fitted)
        if not all(isfinite(value) for value in found[0].values()):
            raise Broken(f"it fits {found[0]}")
        if found[0] != found[1]:
            raise Broken(f"for the same states it fits {found[0]} and {found[1]}")

    def planned(self, kind: Any) -> None:
        """A plan, which has not the teacher's weights, knows how many bytes it takes."""
        with as_broken():
            cost = cost_of(Plugins({SECTION: {"kind": kind}}), HIDDEN, SIZE)
        logits, draws = random_logits(4, PLANNED, SCALE), getattr(kind, "draws", 1)
        found = draws * len(bytes_of(Stored(kind, logits).record(logits)))
        planned = cost.on_disk(PLANNED, 1)
        if abs(found - planned) > 0.1 * found + 0.5 * PLANNED:
            raise Broken(f"{PLANNED} answer tokens take {found:,} bytes, and {planned:,} are planned")


CACHE = Kit(
    "cache",
    {},
    once=properties_of(CacheProperties()),
    exempt=("close",),  # where what it stores is coarse, or another distribution
)


def _all_entries(kind: Any) -> Iterator[tuple[str, SparseDistributions]]:
    """Yield (name, entries) of each document. Raises NotApplicable where the kind stores none."""
    of = Stored(kind)
    for name, logits in DOCUMENTS.items():
        signal = of.signal(logits)
        if SPARSE not in signal.provides:
            raise NotApplicable("it stores no entries")
        yield name, cast(SparseSignal, signal).sparse(ALL)


def _validate(name: str, found: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raise Broken for anything but a finite tensor of this shape and type."""
    if not isinstance(found, Tensor) or tuple(found.shape) != shape or found.dtype != dtype:
        what = f"{list(found.shape)} of {found.dtype}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise Broken(f"`{name}` is {what}, and not {list(shape)} of {dtype}")
    if dtype.is_floating_point and not found.isfinite().all():
        raise Broken(f"`{name}` is not finite")


def _validate_entries(entries: SparseDistributions, tokens: int) -> None:
    count = entries.ids.shape[-1] if isinstance(entries.ids, Tensor) and entries.ids.dim() == 2 else 1
    _validate("ids", entries.ids, (tokens, max(count, 1)), torch.int64)
    _validate("probabilities", entries.probabilities, (tokens, count), torch.float32)
    _validate("entropy", entries.entropy, (tokens,), torch.float32)
    if entries.rest is not None:
        _validate("rest", entries.rest, (tokens,), torch.float32)


def _with_rest(p: Tensor) -> Tensor:
    """Return probabilities [N, K] with that of all other tokens, [N, K + 1]."""
    return torch.cat([p, 1 - p.sum(-1, keepdim=True)], -1)


def _dense(signal: Signal, rows: slice = ALL) -> Tensor:
    """Return probabilities [n, V] of a signal; of entries also the mass of the rest and the entropy, [n, V + 2]."""
    if LOGITS in signal.provides:
        return cast(LogitsSignal, signal).logits(rows).double().softmax(-1)
    entries = cast(SparseSignal, signal).sparse(rows)
    dense = torch.zeros(len(entries.ids), SIZE, dtype=torch.float64)
    dense.scatter_add_(-1, entries.ids, entries.probabilities.double())
    rest = torch.zeros_like(entries.entropy) if entries.rest is None else entries.rest
    return torch.cat([dense, rest[:, None].double(), entries.entropy[:, None].double()], -1)


def _compare(found: Tensor, expected: Tensor, how: str) -> None:
    """Raise Broken where what two signals give differs by more than rounding; `how` says which is found."""
    if len(found) != len(expected):
        raise Broken(f"{how}, there are {len(found)} answer tokens in place of {len(expected)}")
    if len(found) and (off := float((found - expected).abs().max())) > 1e-5:
        raise Broken(f"{how}, a number is off by {off:.2g}")


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Put the name of the document before the message of a property that is broken in the block."""
    try:
        yield
    except Broken as error:
        raise Broken(f"{name}: {error.what}") from error
