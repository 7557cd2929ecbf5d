"""A teacher's own prompt: a conversation as its template writes it, with the student's answers in it, token for token.

The teacher's text is tokenised as a whole; its answers make way for the student's. Where a border would cut a token in
two, the text up to it is tokenised apart. So a teacher whose template and tokenizer are the student's reads
exactly what the student reads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from neoplug.data.encode.chat import Chat, Message, Rendered, template_text
from neoplug.data.encode.tokens import Encoded, Tokenizer, Tokens
from neoplug.errors import Path as Key

KEY: Key = ("teacher", "chat_template")
OWN = "own"  # instead of a template: the one that the teacher's tokenizer brings

Reading = tuple[np.ndarray, np.ndarray]  # [M] int64 ids, [M] bool mask of the answer tokens


@dataclass(frozen=True, eq=False)
class Answer:
    """One assistant turn as the student's tokens say it.

    tokens   [n] int64: those that are scored
    text     what they stand for
    skipped  characters of the turn before them, which are the prompt's: a token of the prompt reaches into the turn
    words    what the assistant says in it, as the row has it
    """

    tokens: np.ndarray
    text: str
    skipped: int = 0
    words: str = ""


def teacher_prompt(chat_template: str | None, tokenizer: Tokenizer) -> "TeacherPrompt | None":
    """Return what the recipe's `teacher.chat_template` asks for: None where the teacher reads the student's tokens."""
    if chat_template is None:
        return None
    return TeacherPrompt(tokenizer, None if chat_template == OWN else template_text(chat_template, KEY))


def answers_of(
    tokens: Encoded, scored: np.ndarray, rendered: Rendered, messages: Sequence[Message]
) -> Iterator[Answer]:
    """Yield an answer for each span of a conversation; `scored` [L] bool tells which tokens count."""
    borders = np.append(tokens.starts, len(rendered.text))
    said = [message.get("content") or "" for message in messages if message["role"] == "assistant"]
    latest = [""] * len(rendered.spans) + said
    for (start, end), words in zip(rendered.spans, latest[len(said) :], strict=True):
        inside = np.flatnonzero(scored & (tokens.starts >= start) & (tokens.starts < end))
        if not len(inside):
            yield Answer(tokens.input_ids[:0], "", end - start)
            continue
        first, after = int(borders[inside[0]]), int(borders[inside[-1] + 1])
        skipped = max(0, first - _begin(rendered.text, start, end, words))
        yield Answer(tokens.input_ids[inside], rendered.text[first:after], skipped, words)


class TeacherPrompt:
    """A teacher's template and tokenizer, applied to conversations that the student answers."""

    def __init__(self, tokenizer: Tokenizer, template: str | None) -> None:
        """Take the tokenizer's own template where `template` is None; RecipeError where it cannot be used."""
        self._tokens = Tokens(tokenizer)
        self.chat = Chat(tokenizer, template, KEY)

    def read(self, rendered: Sequence[Rendered], answers: Sequence[Sequence[Answer]]) -> list[Reading]:
        """Return what the teacher reads of each conversation; each has as many answers as spans."""
        encoded = self._tokens.placed([conversation.text for conversation in rendered])
        found = zip(rendered, encoded, answers, strict=True)
        return [_joined(list(self._pieces(text, tokens, ours))) for text, tokens, ours in found]

    def _pieces(
        self, rendered: Rendered, tokens: Encoded, answers: Sequence[Answer]
    ) -> Iterator[tuple[np.ndarray, bool]]:
        """Yield the tokens between answers and of answers, in turn, and whether they are an answer's."""
        text, at = rendered.text, 0
        for (start, end), answer in zip(rendered.spans, answers, strict=True):
            if len(answer.tokens):
                begin = min(_begin(text, start, end, answer.words) + answer.skipped, end)
                yield self._between(text, tokens, at, begin), False
                yield answer.tokens, True
                at = begin + len(answer.text) if text.startswith(answer.text, begin) else end
        yield self._between(text, tokens, at, len(text)), False

    def _between(self, text: str, tokens: Encoded, start: int, end: int) -> np.ndarray:
        """Return the tokens of a stretch of the text: those of the whole text, where they begin and end with it."""
        borders = [*tokens.starts.tolist(), len(text)]
        first, after = np.searchsorted(borders, [start, end])
        if borders[first] == start and borders[after] == end:
            return tokens.input_ids[first:after]
        if end < len(text):  # as a model reads it that is to answer there
            (beginning,) = self._tokens.placed([text[:end]])
            return self._between(text[:end], beginning, start, end)
        return np.array(self._tokens.continued(text[start:]), np.int64)


def _begin(text: str, start: int, end: int, words: str) -> int:
    """Return where an answer begins: a template without a generation prompt shows its header as a part of the turn."""
    places = [text.find(one, start, end) for one in (words, words.strip()) if one]
    return next((place for place in places if place >= 0), start)


def _joined(pieces: Sequence[tuple[np.ndarray, bool]]) -> Reading:
    ids = np.concatenate([tokens for tokens, _ in pieces])
    return ids, np.concatenate([np.full(len(tokens), scored) for tokens, scored in pieces])
