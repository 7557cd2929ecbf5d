"""The tokens that end a turn of a chat template, and where a turn ends in a rendered conversation.

One rule for all templates, with and without {% generation %} marks: a turn ends with its own stop token; else with the
special token that directly follows it, such as the header of the next role; else it has none.
"""

import re
from collections.abc import Iterable

from neoplug.data.encode.text_encoder import Tokenizer


class StopTokens:
    """The tokens that can end a turn.

    markers  all added tokens of the tokenizer, special or not
    stops    those that end a turn: the special ones, and the one by which the template ends a turn, if any
    """

    def __init__(self, tokenizer: Tokenizer, closer: str) -> None:
        """Use the special tokens and `closer`, the template's own; where it is empty, all added tokens are stops."""
        special = {*tokenizer.all_special_tokens}
        special |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        added = special | {*tokenizer.added_tokens_encoder}
        self._markers = _any_of(added)
        self._stops = tuple(special | {closer} if closer else added)
        self._stop = _any_of(self._stops)

    def closes(self, text: str) -> bool:
        """Return whether a text ends in a stop token, which white space may follow."""
        return text.rstrip().endswith(self._stops)

    def end_of_turn(self, text: str, start: int, end: int) -> int:
        """Return where the turn text[start:end] ends, its stop token included; `end` where it has none.

        White space after a stop token is left out, since it is not generated.
        """
        turn = text[start:end]
        if self.closes(turn):
            return start + len(turn.rstrip())
        after = _skip_blank(text, end)
        following = self._stop.match(text, after) if self._stop else None
        return following.end() if following else end

    def is_blank(self, text: str) -> bool:
        """Return whether a text has only added tokens and white space."""
        return not (self._markers.sub("", text) if self._markers else text).strip()

    def common_length(self, left: str, right: str) -> int:
        """Return the length of the common beginning of two texts; it ends inside no added token."""
        if right.startswith(left):
            return len(left)
        common = next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), None)
        if common is None:
            return min(len(left), len(right))
        starts = [self._marker_across(text, common) for text in (left, right)]
        return min(starts)

    def _marker_across(self, text: str, at: int) -> int:
        """Return the start of the added token that begins before `at` and ends after it; else `at`."""
        for match in self._markers.finditer(text, max(0, at - 100)) if self._markers else ():
            if match.start() >= at:
                break
            if match.end() > at:
                return match.start()
        return at


def closer_in(tokenizer: Tokenizer, text: str, answer: str) -> str:
    """Return the added token that directly follows `answer`, the content of a turn, in a conversation's text."""
    added = _any_of({*tokenizer.all_special_tokens, *tokenizer.added_tokens_encoder})
    at = text.find(answer)
    found = added.match(text, _skip_blank(text, at + len(answer))) if added and at >= 0 else None
    return found.group() if found else ""


def _any_of(tokens: Iterable[str]) -> re.Pattern[str] | None:
    longest_first = sorted(filter(None, tokens), key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _skip_blank(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at
