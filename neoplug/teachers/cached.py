"""A teacher that reads what was stored of a model's output, a document at a time, in a thread before it is needed."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch

from neoplug.data.batch import Batch
from neoplug.errors import DamageError, RunError
from neoplug.hookspecs import Reads
from neoplug.models.head import Head
from neoplug.teachers.base import Signal
from neoplug.teachers.cache_files import EXACT, FIX, Header, Shards
from neoplug.teachers.signals import EntriesSignal, StatesSignal

SAMPLED = "sampled"  # of a signal whose distributions are samples, in metrics and in the log


class _Wanted(NamedTuple):
    """What a batch reads: records of these documents, by content hash, of this draw; None: those of held-out text.

    tokens  answer tokens of the documents
    """

    documents: tuple[str, ...]
    draw: int | None
    tokens: int


@dataclass(eq=False)
class CachedTeacher:
    """A `Teacher` without a model: training documents in the recipe's kind, all others as float32 states.

    header  of the cache
    shards  of training and of held-out documents
    decode  hook `decode_teacher` of the kind
    head    of the teacher, on the device where losses are computed
    serves  what the kind serves
    probes  results of the recipe's probes for the teacher
    """

    header: Header
    train: Shards
    held_out: Shards
    decode: Callable[..., StatesSignal | EntriesSignal]
    head: Head
    serves: Reads
    probes: Mapping[str, Any] = field(default_factory=dict)
    model: None = field(default=None, init=False)
    _thread: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, 1), init=False, repr=False)
    _announced: tuple[_Wanted, Future[StatesSignal | EntriesSignal]] | None = field(
        default=None, init=False, repr=False
    )

    @property
    def is_sampled(self) -> bool:
        """Whether the distributions are samples, so that losses are estimates."""
        return self.serves == "linear"

    @property
    def device(self) -> torch.device:
        """The device of the head."""
        return next(self.head.module.parameters()).device

    def signal(self, batch: Batch) -> Signal:
        """Return the signal for the answer tokens that are left in a batch; its text must be that of its documents."""
        wanted = self._wanted(batch)
        if not wanted.documents:
            return StatesSignal(torch.zeros(0, self.header.hidden_size, device=self.device), self.head)
        if self._announced and self._announced[0] == wanted:
            whole, self._announced = self._announced[1].result(), None
        else:
            whole = self._read(wanted)
        kept = batch.kept
        return whole if kept is None else whole.select(kept)

    def prefetch(self, batch: Batch) -> None:
        """Read and decode the records of a batch in a thread."""
        wanted = self._wanted(batch)
        if wanted.documents:
            self._announced = wanted, self._thread.submit(self._read, wanted)

    def describe(self) -> dict[str, Any]:
        """Return the kind of cache, its key, and the most that a loss may read of the signal."""
        return {"kind": "cached", "cache": self.header.kind["name"], "key": self.header.key, "serves": self.serves}

    def _wanted(self, batch: Batch) -> _Wanted:
        texts = [document.as_teacher() for document in batch.documents if document.answer_tokens]
        draw = None if batch.epoch is None else batch.epoch % self.header.draws
        tokens = sum(text.answer_tokens for text in texts)
        return _Wanted(tuple(text.content_hash for text in texts), draw, tokens)

    @torch.no_grad()
    def _read(self, wanted: _Wanted) -> StatesSignal | EntriesSignal:
        """Return the signal of all answer tokens of the documents."""
        shards, draw = (self.held_out, 0) if wanted.draw is None else (self.train, wanted.draw)
        try:
            records = shards.records(wanted.documents, draw)
        except KeyError as error:
            what = f"the teacher's cache {self.header.key} has no record of a document with the hash {error.args[0]}"
            why = "it was completed for the documents of the recipe before the run began"
            raise RunError(f"{what}\nwhy: {why}\nfix: {FIX}") from None
        except DamageError as error:
            raise RunError(f"{error.file} {error.what}\nwhy: it changed since the run began\nfix: {FIX}") from error
        if wanted.draw is None:
            return StatesSignal(torch.cat([record[EXACT] for record in records]), self.head).to(self.device)
        known = {"fitted": self.header.fitted, "tokens": wanted.tokens, "serves": self.serves}
        return self.decode(stored=records, head=self.head, **known).to(self.device)
