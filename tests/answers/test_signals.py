"""What `decode_teacher` returns is refused where losses would misread it, with the plugin and its line."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

from neoplug import EntriesSignal, SparseDistributions, StatesSignal, hookimpl
from neoplug.errors import AnswerError
from neoplug.models.head import Head
from neoplug.models.vocabulary import Vocabulary
from neoplug.registry import Plugins

TOKENS, SIZE = 3, 7
HEAD = Head(nn.Linear(4, SIZE), Vocabulary(SIZE))
STATES = StatesSignal(torch.ones(TOKENS, 4), HEAD)
ENTRIES = SparseDistributions(
    torch.tensor([[0, 6]] * TOKENS), torch.full((TOKENS, 2), 0.25), torch.ones(TOKENS), torch.full((TOKENS,), 0.5)
)


@dataclass(eq=False)
class Kind:
    signal: Any

    @hookimpl
    def encode_teacher(self, states):
        return {"states": states}

    @hookimpl
    def decode_teacher(self):
        return self.signal


def decoded(signal, **known):
    plugins = Plugins({"teacher.cache": {"kind": Kind(signal)}})
    return plugins.one("decode_teacher", stored=[], head=HEAD, fitted={}, **known)


def entries(**changes):
    return EntriesSignal(replace(ENTRIES, **changes))


@pytest.mark.parametrize(
    ("signal", "serves"), [(STATES, "full"), (entries(), "buckets"), (entries(rest=None), "linear")]
)
def test_a_right_signal_is_returned(signal, serves):
    assert decoded(signal, tokens=TOKENS, serves=serves) is signal
    assert decoded(signal) is signal


@pytest.mark.parametrize(
    ("signal", "serves", "words"),
    [
        (None, "full", "with None, where a signal"),
        (entries(), "full", "with a signal that provides sparse, where logits is expected"),
        (STATES, "linear", "with a signal that provides logits, where sparse is expected"),
        (StatesSignal(STATES.states[:1], HEAD), "full", "1 rows in `states`, where one for each of 3 answer tokens"),
        (entries(ids=ENTRIES.ids[:2]), "buckets", "2 rows in `ids`, where one for each of 3 answer tokens"),
        (entries(entropy=torch.ones(2)), "buckets", "2 rows in `entropy`"),
        (entries(rest=torch.ones(TOKENS, 1)), "buckets", "the value `rest`, which is shape [3, 1]"),
        (entries(probabilities=torch.ones(TOKENS, 3)), "buckets", "where shape [3, 2] is expected"),
        (entries(probabilities=[0.5]), "buckets", "the value `probabilities`, which is a list"),
        (entries(ids=ENTRIES.ids + 1), "buckets", "the id 7 in a shared vocabulary of 7 tokens"),
        (entries(ids=ENTRIES.ids - 1), "buckets", "the id -1 in a shared vocabulary of 7 tokens"),
    ],
)
def test_a_wrong_signal_is_refused(signal, serves, words):
    with pytest.raises(AnswerError) as caught:
        decoded(signal, tokens=TOKENS, serves=serves)
    assert words in caught.value.message()
    assert "at: " in caught.value.message()
    assert "test_signals.py:" in caught.value.message()
