"""Contents to tokens: which tokens a row becomes and which of them are trained on. Lengths are cut elsewhere."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jinja2
import numpy as np

from neoplug.data.chat import Chat, Rendered, Unstable, unstable
from neoplug.data.columns import Content
from neoplug.data.tokens import Encoded, Tokenizer, Tokens

TrainOn = Literal["answers", "all", "last"]

ROWS_AT_ONCE = 512  # of one call of the tokenizer

ALPACA = (
    "Below is an instruction that describes a task{also}. "
    "Write a response that appropriately completes the request.\n\n"
)
ALPACA_ALSO = ", paired with an input that provides further context"


@dataclass(frozen=True, eq=False)
class Tokenised:
    """A whole row as tokens.

    input_ids       [L] int64
    scored          [L] bool; the first token is never scored
    windowed        whether it is cut into windows where it is too long, rather than at its end
    teacher_ids     [M] int64: what the teacher reads instead, where it has a prompt of its own
    teacher_scored  [M] bool: the same answer tokens in `teacher_ids`, one for one
    """

    row: int
    input_ids: np.ndarray
    scored: np.ndarray
    windowed: bool
    teacher_ids: np.ndarray | None = None
    teacher_scored: np.ndarray | None = None


class Tokeniser:
    """Rows of any kind to tokens, by one tokenizer, chat template and `train_on`."""

    def __init__(self, tokenizer: Tokenizer, template: str | None, train_on: TrainOn) -> None:
        self._tokens = Tokens(tokenizer)
        self._template = template
        self._train_on = train_on
        self._chat: Chat | None = None

    def tokenise(self, contents: Sequence[Content], refused: Callable[[int, str], Any]) -> Iterator[Tokenised]:
        """Yield each row's tokens, in order; call refused(row, why) for a row that a chat template cannot render."""
        for first in range(0, len(contents), ROWS_AT_ONCE):
            some = contents[first : first + ROWS_AT_ONCE]
            if some[0].kind == "text":
                yield from self._texts(some)
            elif self.is_chat(some[0]):
                yield from self._chats(some, refused)
            else:
                yield from self._completions(some)

    def is_chat(self, content: Content) -> bool:
        """Return whether the row goes through a chat template: Alpaca's rows do where there is one."""
        has_template = self._template is not None or bool(self._tokens.tokenizer.chat_template)
        return content.kind == "messages" or (content.kind == "alpaca" and has_template)

    def _texts(self, contents: Sequence[Content]) -> Iterator[Tokenised]:
        around, end = self._tokens, self._tokens.end
        texts = self._tokens.plain([content.values["text"] for content in contents])
        for content, text in zip(contents, texts, strict=True):
            ids = _ended([*around.prefix, *text, *around.suffix], end)
            yield _tokenised(content, ids, first_scored=0, windowed=True)

    def _completions(self, contents: Sequence[Content]) -> Iterator[Tokenised]:
        """Yield prompt and completion. The prompt has the tokens that it has alone: generation starts from these.

        Where tokens of the joined text merge across the border, the completion is tokenised apart.
        """
        pairs = [_pair(content) for content in contents]
        prompts = self._tokens.plain([prompt for prompt, _ in pairs])
        joined = self._tokens.plain([prompt + completion for prompt, completion in pairs])
        for content, (_, text), prompt, whole in zip(contents, pairs, prompts, joined, strict=True):
            stable = whole[: len(prompt)] == prompt
            completion = whole[len(prompt) :] if stable else self._tokens.continued(text)
            opening = [*self._tokens.prefix, *prompt]
            ids = _ended([*opening, *completion], self._tokens.end)
            yield _tokenised(content, ids, 0 if self._train_on == "all" else len(opening), windowed=False)

    def _chats(self, contents: Sequence[Content], refused: Callable[[int, str], Any]) -> Iterator[Tokenised]:
        rendered = [(content, text) for content in contents if (text := self._render(content, refused))]
        encoded = self._tokens.placed([text.text for _, text in rendered])
        for (content, text), tokens in zip(rendered, encoded, strict=True):
            yield Tokenised(content.number, tokens.input_ids, _mask(tokens, text), windowed=False)

    def _render(self, content: Content, refused: Callable[[int, str], Any]) -> Rendered | None:
        if self._chat is None:
            self._chat = Chat(self._tokens.tokenizer, self._template)
        try:
            return self._chat.render(_messages(content), self._train_on)
        except Unstable as error:
            raise unstable(error, content.number) from error
        except jinja2.TemplateError as error:
            refused(content.number, f"refused by the chat template: {error}")
            return None


def _mask(tokens: Encoded, rendered: Rendered) -> np.ndarray:
    """Return [L] bool: the tokens that start inside a span.

    A token that starts before an answer and reaches into it is the prompt's: generation, which starts from the prompt
    alone, never produces it. One that starts in an answer and reaches beyond it is the answer's.
    """
    scored = np.zeros(len(tokens.input_ids), bool)
    for start, end in rendered.spans:
        scored |= (tokens.starts >= start) & (tokens.starts < end)
    scored[:1] = False
    return scored


def _tokenised(content: Content, ids: list[int], first_scored: int, *, windowed: bool) -> Tokenised:
    scored = np.arange(len(ids)) >= max(1, first_scored)
    return Tokenised(content.number, np.array(ids, np.int64), scored, windowed)


def _ended(ids: list[int], end: list[int]) -> list[int]:
    return ids if not end or ids[-1:] == end else ids + end


def _messages(content: Content) -> list[dict[str, Any]]:
    if content.kind == "messages":
        return content.values["messages"]
    question = "\n\n".join(content.values[name] for name in ("instruction", "input") if name in content.values)
    return [{"role": "user", "content": question}, {"role": "assistant", "content": content.values["output"]}]


def _pair(content: Content) -> tuple[str, str]:
    """Return prompt and completion; Alpaca's rows get the prompt that Alpaca was trained with."""
    if content.kind == "completion":
        return content.values["prompt"], content.values["completion"]
    values = content.values
    asked = f"### Instruction:\n{values['instruction']}\n\n"
    given = f"### Input:\n{values['input']}\n\n" if "input" in values else ""
    return ALPACA.format(also=ALPACA_ALSO if given else "") + asked + given + "### Response:", values["output"]
