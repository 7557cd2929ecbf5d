"""Tokenisation of texts without special tokens, with the exact offset at which each token starts.

Many byte-level tokenizers report the offset of a token without its leading space, so that a token of the prompt's last
space and the answer's first letters would seem to start in the answer. Their post-processor trims the offsets: a copy
of the tokenizer without post-processor gives the same tokens with exact offsets. The special tokens that the
post-processor adds are available as `prefix` and `suffix`.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from neoplug.errors import Problem, RecipeError

Tokenizer: TypeAlias = Any  # transformers' PreTrainedTokenizerBase: importing it costs seconds


@dataclass(frozen=True, eq=False)
class EncodedText:
    """The tokens of one text.

    input_ids  [L] int64
    starts     [L] int64: the character of the text at which each token starts
    """

    input_ids: np.ndarray
    starts: np.ndarray


class TextEncoder:
    """Tokenises texts with one tokenizer, without special tokens.

    prefix  special tokens that the tokenizer adds before a text
    suffix  special tokens that the tokenizer adds after a text
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.prefix, self.suffix = _affixes(tokenizer)
        self._blank: dict[int, bool] = {}
        self._backend = _exact_backend(tokenizer) if tokenizer.is_fast else None

    @property
    def eos(self) -> list[int]:
        """Return the end-of-sequence token in a list; an empty list where the tokenizer has none."""
        return [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]

    def opened(self, ids: Sequence[int]) -> list[int]:
        """Return the tokens of a text after the prefix, of which the text may have the last tokens itself."""
        first = next((place for place, token in enumerate(ids) if not self._is_blank(token)), 0)
        return [*self.prefix[: len(self.prefix) - _overlap(self.prefix, ids[first:])], *ids]

    def ended(self, ids: Sequence[int], end: Sequence[int]) -> list[int]:
        """Return the tokens of a text with the special tokens `end`, unless the text has them itself.

        White space after special tokens of the text changes nothing.
        """
        said = ids[: len(ids) - self.blank_at_end(ids)]
        if end and list(said[-1:]) == list(end[-1:]):
            return list(ids)
        return [*ids, *end[_overlap(said, end) :]]

    def whole(self, ids: Sequence[int]) -> list[int]:
        """Return the tokens of a text with prefix, suffix and end-of-sequence token, none of them twice."""
        end = self.suffix if self.suffix[-1:] == self.eos else [*self.suffix, *self.eos]
        return self.ended(self.opened(ids), end)

    def blank_at_end(self, ids: Sequence[int]) -> int:
        """Return how many of the last tokens are white space."""
        return next((count for count, token in enumerate(reversed(ids)) if not self._is_blank(token)), len(ids))

    def _is_blank(self, token: int) -> bool:
        if token not in self._blank:
            self._blank[token] = not self.tokenizer.decode([token]).strip()
        return self._blank[token]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text."""
        if self._backend is None:
            return self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_continuation(self, text: str) -> list[int]:
        """Return the tokens of a text that follows another one, when no token spans the border between them.

        The text is tokenised after a character that does not merge with it, since SentencePiece tokenizers add a space
        at the beginning of what they tokenise.
        """
        for before in ("\n", "|"):
            prefix, joined = self.encode([before, before + text])
            if joined[: len(prefix)] == prefix:
                return joined[len(prefix) :]
        return self.encode([text])[0]

    def encode_with_starts(self, texts: Sequence[str]) -> list[EncodedText]:
        """Return the tokens of each text and the characters at which they start.

        raises  RecipeError where the tokenizer is not a fast one, since only these report offsets
        """
        if self._backend is None:
            what = f"{type(self.tokenizer).__name__} does not report which part of a text a token covers"
            why = "without that, the tokens of an answer cannot be distinguished from those of its prompt"
            raise RecipeError([Problem(what, why, "use a fast tokenizer, or prompt + completion", ("data", "source"))])
        return [
            EncodedText(np.array(encoding.ids, np.int64), np.array(encoding.offsets, np.int64).reshape(-1, 2)[:, 0])
            for encoding in self._backend.encode_batch(list(texts), add_special_tokens=False)
        ]


def _exact_backend(tokenizer: Tokenizer) -> Any:
    """Return a copy of a fast tokenizer's backend that does not truncate or pad, and reports exact offsets."""
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.post_processor = None
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = bool(tokenizer.split_special_tokens)
    return backend


def _affixes(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the special tokens that the tokenizer adds before and after a text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return [], []


def _overlap(left: Sequence[int], right: Sequence[int]) -> int:
    """Return the length of the longest end of `left` with which `right` begins."""
    longest = min(len(left), len(right))
    return next((n for n in range(longest, 0, -1) if list(left[-n:]) == list(right[:n])), 0)
