"""The protocols between a teacher and its callers: the training loop, gradient norms and evaluation.

A teacher returns a signal for each batch. A signal names the kinds of data that it provides; a caller requires the kind
that it needs (`require_logits`). N answer tokens of a batch, n of a block, V shared vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from neoplug.data.batch import Batch, to_device
from neoplug.errors import RunError
from neoplug.models.language_model import LanguageModel

LOGITS = "logits"  # the kind of a `LogitsSignal`
SPARSE = "sparse"  # the kind of a `SparseSignal`


class Signal(Protocol):
    """The teacher's output for the answer tokens of one batch, in the order of `batch.labels`.

    provides  names of the kinds of data that the signal has. Each kind has a protocol that extends this one. neoplug
              uses `LOGITS`, else `SPARSE`; a teacher may define others, such as hidden states of layers
    """

    @property
    def provides(self) -> frozenset[str]:
        """The names of the kinds of data that the signal has."""


class LogitsSignal(Signal, Protocol):
    """A signal with the logits of the whole vocabulary, a block of answer tokens at a time."""

    def logits(self, rows: slice) -> Tensor:
        """Return float32 logits [n, V] of a block of answer tokens, up to a constant per token, without gradient.

        The tensor may be on another device than the student. The caller may overwrite it, and so may the next call.

        rows  the block, as indices in `batch.labels`
        """


@dataclass(frozen=True, eq=False)
class SparseDistributions:
    """A few entries of the teacher's distribution for each of n tokens, K at most.

    ids            [n, K] int64: columns of the shared vocabulary
    probabilities  [n, K] float32; 0 where a token has fewer entries
    entropy        [n] float32: of the whole distribution, in nats
    rest           [n] float32: the mass of all tokens without an entry; None where the entries are a sample, whose
                   probabilities add up to 1
    """

    ids: Tensor
    probabilities: Tensor
    entropy: Tensor
    rest: Tensor | None = None

    def __getitem__(self, rows: slice | Tensor) -> "SparseDistributions":
        return self._map(lambda part: part[rows])

    def to(self, device: torch.device) -> "SparseDistributions":
        """Return the entries on `device`."""
        return self._map(lambda part: to_device(part, device))

    def arguments(self) -> dict[str, Tensor | None]:
        """Return the entries by the names that hooks have for them."""
        entries = {"ids": self.ids, "probabilities": self.probabilities, "rest": self.rest}
        return {**entries, "teacher_entropy": self.entropy}

    def _map(self, change: Callable[[Tensor], Tensor]) -> "SparseDistributions":
        rest = None if self.rest is None else change(self.rest)
        return SparseDistributions(change(self.ids), change(self.probabilities), change(self.entropy), rest)


class SparseSignal(Signal, Protocol):
    """A signal with a few entries of each distribution, the most probable token of the teacher first."""

    def sparse(self, rows: slice) -> SparseDistributions:
        """Return the entries of a block of answer tokens; `rows` are indices in `batch.labels`."""


class Teacher(Protocol):
    """A teacher of any kind: a model in memory, stored outputs, a remote server.

    model  the model in memory, which probes evaluate; None where there is none
    """

    @property
    def model(self) -> LanguageModel | None:
        """The model in memory, or None."""

    def signal(self, batch: Batch) -> Signal:
        """Return the signal for the answer tokens of a batch, which may be on any device."""

    def prefetch(self, batch: Batch) -> None:
        """Start to load what `signal(batch)` needs, and return without waiting; a teacher in memory does nothing.

        The training loop calls it with the next micro-batch while it trains on the current one; the first of a step is
        announced as it is before all edits.
        """

    def describe(self) -> dict[str, Any]:
        """Return the kind of the teacher and its settings as plain JSON values, for the log."""


def require_logits(signal: Signal) -> LogitsSignal:
    """Return the signal if it provides logits.

    Raises:
        RunError: it does not.
    """
    if LOGITS in signal.provides:
        return cast(LogitsSignal, signal)
    provided = ", ".join(sorted(signal.provides)) or "nothing"
    raise RunError(
        f"the teacher's signal ({type(signal).__name__}) has no logits; it provides {provided}\n"
        "why: losses and evaluation read the teacher's probability of every token of the vocabulary\n"
        "fix: use a teacher that provides logits, such as a model in memory"
    )
