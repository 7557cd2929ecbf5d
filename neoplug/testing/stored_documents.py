"""Documents of teachers that are certain, undecided or between, and a kind of cache that stores them as in a run.

N answer tokens of a document, V shared vocabulary, H the teacher's hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from neoplug.models.head import Head
from neoplug.models.vocabulary import Vocabulary
from neoplug.teachers.base import Signal
from neoplug.testing.hooks import answer
from neoplug.testing.loss_examples import hook
from neoplug.testing.search import Broken, as_broken

ROWS, HIDDEN = 29, 32  # of the teacher's head
SHARED = [row for row in range(ROWS) if row % 6 != 2]  # rows of tokens that the student has too
SIZE = len(SHARED)  # V
CERTAIN = 1e4  # a logit so far above the others that their probabilities are 0


def random_logits(seed: int, tokens: int, scale: float) -> Tensor:
    """Return [tokens, V] logits with this standard deviation."""
    return torch.randn(tokens, SIZE, generator=torch.Generator().manual_seed(seed)) * scale


LONG = random_logits(3, 200, 3.0)
# What each document is -> the teacher's logits over the shared vocabulary, [N, V]; from the smallest.
DOCUMENTS: Mapping[str, Tensor] = {
    "a token": random_logits(0, 1, 2.0),
    "a token of which the teacher is certain": CERTAIN * torch.eye(SIZE)[3:4],
    "a token of which the teacher is nearly certain": 20 * torch.eye(SIZE)[3:4],
    "a token of which the teacher knows nothing": torch.zeros(1, SIZE),
    "a token with two that are equally probable": CERTAIN * torch.eye(SIZE)[[1, 20]].sum(0, keepdim=True),
    "three tokens": random_logits(1, 3, 1.0),
    "tokens from flat to certain": random_logits(2, 6, 1.0) * torch.linspace(0, 6, 6)[:, None],
    "a long document": LONG,
}


@dataclass(eq=False)
class Stored:
    """A kind of cache with what it fitted, called as a run does. Errors that a run would show are raised as Broken.

    sample  logits of the tokens that it is fitted on

    Raises TypeError for a plugin without `encode_teacher`.
    """

    kind: Any
    sample: Tensor = LONG

    def __post_init__(self) -> None:
        if hook(self.kind, "encode_teacher") is None:
            raise TypeError(f"{type(self.kind).__name__} has no `encode_teacher`")

    @cached_property
    def fitted(self) -> dict[str, float]:
        """What the header of a cache has of the numbers that the kind fits."""
        with as_broken(), torch.no_grad():
            logits = head().prepare_logits_fn()
            found = answer(self.kind, "fit_cache", states=states_of(self.sample), logits=logits) or {}
        return {name: float(value) for name, value in sorted(found.items())}

    def encoded(self, states: Tensor, draw: int = 0) -> dict[str, Tensor]:
        """Return what the kind stores of a document with these states [N, H]."""
        rng, logits = torch.Generator().manual_seed(draw), head().prepare_logits_fn()
        given = {"states": states, "logits": logits, "fitted": dict(self.fitted), "rng": rng}
        with as_broken(), torch.no_grad():
            record = answer(self.kind, "encode_teacher", **given)
        return {name: part.contiguous() for name, part in record.items()}

    def record(self, logits: Tensor, draw: int = 0) -> dict[str, Tensor]:
        """Return what the kind stores of a document with these logits [N, V]."""
        return self.encoded(states_of(logits), draw)

    def decoded(self, records: Sequence[Mapping[str, Tensor]]) -> Signal:
        """Return the signal of some documents."""
        if hook(self.kind, "decode_teacher") is None:
            raise Broken("it has no `decode_teacher`: nothing reads what it stores")
        given = {"stored": [dict(record) for record in records], "head": head(), "fitted": dict(self.fitted)}
        with as_broken(), torch.no_grad():
            found: Signal = answer(self.kind, "decode_teacher", **given)
        return found

    def signal(self, logits: Tensor, draw: int = 0) -> Signal:
        """Return the signal of a document with these logits [N, V]."""
        return self.decoded([self.record(logits, draw)])


@cache
def head() -> Head:
    """Return a head whose logits are the first hidden states, and of which some rows are not shared."""
    linear = nn.Linear(HIDDEN, ROWS, bias=False).requires_grad_(False)
    linear.weight.copy_(torch.eye(ROWS, HIDDEN))
    return Head(linear, Vocabulary(SIZE, torch.tensor(SHARED)))


def states_of(logits: Tensor) -> Tensor:
    """Return hidden states [N, H] with these logits [N, V]; tokens that are not shared have probabilities too."""
    return torch.ones(len(logits), HIDDEN).index_copy(1, torch.tensor(SHARED), logits)


def bytes_of(record: Mapping[str, Tensor]) -> bytes:
    """Return the bytes of a record in a file. Raises Broken where no file can hold it."""
    try:
        return save(dict(record))
    except Exception as error:  # safetensors raises its own
        raise Broken(f"no file can hold what `encode_teacher` returns: {error}") from error
