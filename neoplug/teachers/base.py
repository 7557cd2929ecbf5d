"""The protocols between a teacher and its callers: the training loop, gradient norms and evaluation.

A teacher returns a signal for each batch. A signal names the kinds of data that it provides; a caller requires the kind
that it needs (`require_logits`). N answer tokens of a batch, n of a block, V shared vocabulary.
"""

from typing import Any, Protocol, cast

from torch import Tensor

from neoplug.data.batch import Batch
from neoplug.errors import RunError
from neoplug.models.language_model import LanguageModel

LOGITS = "logits"  # the kind of a `LogitsSignal`


class Signal(Protocol):
    """The teacher's output for the answer tokens of one batch, in the order of `batch.labels`.

    provides  names of the kinds of data that the signal has. Each kind has a protocol that extends this one. `LOGITS`
              is the only kind that neoplug uses; a teacher may define others, such as hidden states of layers
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

        The training loop calls it with the next micro-batch while it trains on the current one.
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
