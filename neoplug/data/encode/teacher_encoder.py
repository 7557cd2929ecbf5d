"""Encoding for a teacher with its own chat template: conversations with its prompts and the student's answer tokens.

The conversation is rendered by the teacher's template and tokenised as a whole, and the tokens of its answers are
replaced by the student's. Where a border falls inside a token, the text up to the border is tokenised separately. A
teacher with the student's template and tokenizer therefore reads exactly what the student reads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from neoplug.data.encode.chat import ChatTemplate, Message, Rendered, template_text
from neoplug.data.encode.text_encoder import EncodedText, TextEncoder, Tokenizer
from neoplug.errors import Path as Key

KEY: Key = ("teacher", "chat_template")
OWN = "own"  # the recipe's value for the template of the teacher's tokenizer

MaskedIds = tuple[np.ndarray, np.ndarray]  # [M] int64 ids, [M] bool mask of the answer tokens


@dataclass(frozen=True, eq=False)
class Answer:
    """One assistant turn in the student's tokens.

    tokens   [n] int64: its answer tokens
    text     the text of these tokens
    skipped  number of the content's first characters that are not in `text`, since a token of the prompt has them
    content  the message's content in the row
    """

    tokens: np.ndarray
    text: str
    skipped: int = 0
    content: str = ""


def teacher_encoder(chat_template: str | None, tokenizer: Tokenizer, day: str | None = None) -> "TeacherEncoder | None":
    """Return the encoder for a `teacher.chat_template`; None for None: the teacher reads the student's tokens.

    day  the date that the template reads, YYYY-MM-DD; None: the clock's
    """
    if chat_template is None:
        return None
    template = None if chat_template == OWN else template_text(chat_template, tokenizer, KEY)
    return TeacherEncoder(tokenizer, template, day)


def answers_of(
    tokens: EncodedText, loss_mask: np.ndarray, rendered: Rendered, messages: Sequence[Message]
) -> Iterator[Answer]:
    """Yield an answer for each span of a conversation; `loss_mask` [L] bool marks the answer tokens."""
    borders = np.append(tokens.starts, len(rendered.text))
    known = len(rendered.turns) == len(rendered.spans)
    contents = [messages[turn].get("content") or "" for turn in rendered.turns] if known else [""] * len(rendered.spans)
    for (start, end), content in zip(rendered.spans, contents, strict=True):
        inside = np.flatnonzero(loss_mask & (tokens.starts >= start) & (tokens.starts < end))
        if not len(inside):
            yield Answer(tokens.input_ids[:0], "", end - start)
            continue
        first, after = int(borders[inside[0]]), int(borders[inside[-1] + 1])
        skipped = max(0, first - _content_start(rendered.text, start, end, content))
        yield Answer(tokens.input_ids[inside], rendered.text[first:after], skipped, content)


class TeacherEncoder:
    """Encodes conversations for the teacher: prompts by its template and tokenizer, answers in the student's tokens."""

    def __init__(self, tokenizer: Tokenizer, template: str | None, day: str | None = None) -> None:
        """Use the tokenizer's template where `template` is None; RecipeError where it cannot be used."""
        self._text_encoder = TextEncoder(tokenizer)
        self.chat = ChatTemplate(tokenizer, template, KEY, day)

    def encode(self, rendered: Sequence[Rendered], answers: Sequence[Sequence[Answer]]) -> list[MaskedIds]:
        """Return the teacher's tokens and loss mask of each conversation.

        rendered  the conversations, rendered by the teacher's template
        answers   the answers of each, one for each of its spans
        """
        encoded = self._text_encoder.encode_with_starts([conversation.text for conversation in rendered])
        conversations = zip(rendered, encoded, answers, strict=True)
        return [_concatenated(list(self._pieces(*conversation))) for conversation in conversations]

    def _pieces(
        self, rendered: Rendered, tokens: EncodedText, answers: Sequence[Answer]
    ) -> Iterator[tuple[np.ndarray, bool]]:
        """Yield the pieces of a conversation in order: tokens, and whether they are answer tokens."""
        text, at = rendered.text, 0
        for (start, end), answer in zip(rendered.spans, answers, strict=True):
            if len(answer.tokens):
                begin = min(_content_start(text, start, end, answer.content) + answer.skipped, end)
                yield self._between(text, tokens, at, begin), False
                yield answer.tokens, True
                at = begin + len(answer.text) if text.startswith(answer.text, begin) else end
        yield self._between(text, tokens, at, len(text)), False

    def _between(self, text: str, tokens: EncodedText, start: int, end: int) -> np.ndarray:
        """Return the tokens of text[start:end], from `tokens` of the whole text if no token spans `start` or `end`."""
        borders = [*tokens.starts.tolist(), len(text)]
        first, after = np.searchsorted(borders, [start, end])
        if borders[first] == start and borders[after] == end:
            return tokens.input_ids[first:after]
        if end < len(text):  # tokenised as the prompt of a generation that starts at `end`
            (beginning,) = self._text_encoder.encode_with_starts([text[:end]])
            return self._between(text[:end], beginning, start, end)
        return np.array(self._text_encoder.encode_continuation(text[start:]), np.int64)


def _content_start(text: str, start: int, end: int, content: str) -> int:
    """Return where the content of the turn text[start:end] starts; `start` if it is not found.

    The span of a turn includes its header where the template has no generation prompt.
    """
    matches = [text.find(searched, start, end) for searched in (content, content.strip()) if searched]
    return next((match for match in matches if match >= 0), start)


def _concatenated(pieces: Sequence[tuple[np.ndarray, bool]]) -> MaskedIds:
    ids = np.concatenate([tokens for tokens, _ in pieces])
    return ids, np.concatenate([np.full(len(tokens), is_answer) for tokens, is_answer in pieces])
