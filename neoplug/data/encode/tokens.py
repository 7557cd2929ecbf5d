"""A tokenizer as this package needs it: plain tokens of a text, with the true place of each in the text.

Many byte-level tokenizers report places without the blanks that belong to a token, so that a token of a prompt's last
blank and an answer's first letters would seem to start in the answer. That happens in their post-processor; a copy
without one keeps true places, and gives the same tokens, since special tokens are put around them here.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from neoplug.errors import Problem, RecipeError

Tokenizer: TypeAlias = Any  # transformers' PreTrainedTokenizerBase: importing it costs seconds


@dataclass(frozen=True, eq=False)
class Encoded:
    """The tokens of one text.

    input_ids  [L] int64
    starts     [L] int64: the character of the text at which each token starts
    """

    input_ids: np.ndarray
    starts: np.ndarray


class Tokens:
    """Tokens of texts, and what the tokenizer itself puts before and after a text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.prefix, self.suffix = _affixes(tokenizer)
        self._backend = _bare(tokenizer) if tokenizer.is_fast else None

    @property
    def end(self) -> list[int]:
        """Return the end-of-sequence token, or nothing where the tokenizer has none."""
        return [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]

    def plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text, without special tokens around them."""
        if self._backend is None:
            return self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        found = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def continued(self, text: str) -> list[int]:
        """Return the tokens of a text that follows another one, which were not to merge with it.

        A text alone would get the blank that tokenizers of the SentencePiece kind put before every text.
        """
        for before in ("\n", "|"):
            anchor, anchored = self.plain([before, before + text])
            if anchored[: len(anchor)] == anchor:
                return anchored[len(anchor) :]
        return self.plain([text])[0]

    def placed(self, texts: Sequence[str]) -> list[Encoded]:
        """Return the tokens of each text and where they start, without special tokens around them."""
        if self._backend is None:
            what = f"{type(self.tokenizer).__name__} does not say which part of a text a token stands for"
            why = "without that, the tokens of an answer cannot be told from those of its prompt"
            raise RecipeError([Problem(what, why, "use a fast tokenizer, or prompt + completion", ("data", "source"))])
        return [
            Encoded(np.array(found.ids, np.int64), np.array(found.offsets, np.int64).reshape(-1, 2)[:, 0])
            for found in self._backend.encode_batch(list(texts), add_special_tokens=False)
        ]


def _bare(tokenizer: Tokenizer) -> Any:
    """Return a copy of a fast tokenizer's own machine that cuts nothing, pads nothing and keeps true places."""
    machine = copy.deepcopy(tokenizer.backend_tokenizer)
    machine.post_processor = None
    machine.no_truncation()
    machine.no_padding()
    machine.encode_special_tokens = bool(tokenizer.split_special_tokens)
    return machine


def _affixes(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the special tokens that the tokenizer puts before and after a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return [], []
