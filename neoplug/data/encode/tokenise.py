"""Contents to tokens: which tokens a row becomes and which of them are trained on. Lengths are cut elsewhere."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from neoplug.data.encode.chat import OWN_KEY, Chat, Refused, Rendered, Unstable, unstable
from neoplug.data.encode.teacher_prompt import Answer, TeacherPrompt, answers_of
from neoplug.data.encode.tokens import Encoded, Tokenizer, Tokens
from neoplug.data.ingest.columns import Content

TrainOn = Literal["answers", "all", "last"]
OnRefusal = Callable[[int, str], Any]  # takes the number of a row that cannot be used, and why

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
    loss_mask       [L] bool; the first token is never scored
    windowed        whether it is cut into windows where it is too long, rather than at its end
    teacher_ids     [M] int64: what the teacher reads instead, where it has a prompt of its own
    teacher_loss_mask  [M] bool: the same answer tokens in `teacher_ids`, one for one
    answers         its assistant turns, where it is a conversation
    """

    row: int
    input_ids: np.ndarray
    loss_mask: np.ndarray
    windowed: bool
    teacher_ids: np.ndarray | None = None
    teacher_loss_mask: np.ndarray | None = None
    answers: Sequence[Answer] = ()


class Tokeniser:
    """Rows of any kind to tokens, by one tokenizer, chat template and `train_on`.

    Conversations also to what a `teacher` with a prompt of its own reads.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: str | None, train_on: TrainOn, teacher: TeacherPrompt | None = None
    ) -> None:
        self._tokens = Tokens(tokenizer)
        self._template = template
        self._train_on = train_on
        self._teacher = teacher
        self._chat: Chat | None = None

    def tokenise(self, contents: Sequence[Content], refused: OnRefusal) -> Iterator[Tokenised]:
        """Yield each row's tokens, in order; call refused(row, why) for a row that a chat template cannot render."""
        for first in range(0, len(contents), ROWS_AT_ONCE):
            some = contents[first : first + ROWS_AT_ONCE]
            texts = [content for content in some if content.kind == "text"]
            chats = [content for content in some if self.is_chat(content)]
            completions = [content for content in some if content.kind != "text" and not self.is_chat(content)]
            found = [*self._texts(texts), *self._chats(chats, refused), *self._completions(completions)]
            found.sort(key=lambda row: row.row)
            yield from found if self._teacher is None else self._taught(self._teacher, some, found, refused)

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
            row = _tokenised(content, ids, 0 if self._train_on == "all" else len(opening), windowed=False)
            answer = Answer(row.input_ids[row.loss_mask], text + (self._tokens.tokenizer.eos_token or ""), words=text)
            yield replace(row, answers=(answer,))

    def _chats(self, contents: Sequence[Content], refused: OnRefusal) -> Iterator[Tokenised]:
        if not contents:
            return
        self._chat = self._chat or Chat(self._tokens.tokenizer, self._template)
        rendered = _rendered(self._chat, contents, self._train_on, refused)
        encoded = self._tokens.placed([text.text for text in rendered.values()])
        messages = {content.number: messages_of(content) for content in contents}
        for (number, text), tokens in zip(rendered.items(), encoded, strict=True):
            scored = _mask(tokens, text)
            answers = list(answers_of(tokens, scored, text, messages[number])) if self._teacher else ()
            yield Tokenised(number, tokens.input_ids, scored, windowed=False, answers=answers)

    def _taught(
        self, teacher: TeacherPrompt, contents: Sequence[Content], rows: Sequence[Tokenised], refused: OnRefusal
    ) -> Iterator[Tokenised]:
        """Yield the rows, conversations with what the teacher reads of them."""
        answers = {row.row: row.answers for row in rows}
        talks = [c for c in contents if c.kind in ("messages", "alpaca") and c.number in answers]
        rendered = _rendered(teacher.chat, talks, self._train_on, refused)
        for number, text in list(rendered.items()):
            if len(text.spans) != len(answers[number]):
                refused(
                    number, f"{len(answers[number])} answers, of which the teacher's template shows {len(text.spans)}"
                )
                del rendered[number]
        found = teacher.read(list(rendered.values()), [answers[number] for number in rendered])
        readings = dict(zip(rendered, found, strict=True))
        lost = {content.number for content in talks} - readings.keys()
        for row in rows:
            if row.row not in lost:
                ids, scored = readings.get(row.row, (None, None))
                yield replace(row, teacher_ids=ids, teacher_loss_mask=scored)


def _rendered(chat: Chat, contents: Iterable[Content], train_on: TrainOn, refused: OnRefusal) -> dict[int, Rendered]:
    """Return each conversation that the template takes, by its row's number."""
    found = {}
    whose = "the chat template" if chat.key == OWN_KEY else "the teacher's chat template"
    for content in contents:
        try:
            found[content.number] = chat.render(messages_of(content), train_on, content.values.get("tools"))
        except Unstable as error:
            raise unstable(error, content.number, chat.key) from error
        except Refused as error:
            refused(content.number, f"refused by {whose}: {error}")
    return found


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


def messages_of(content: Content) -> list[dict[str, Any]]:
    """Return the conversation that a row of messages or of Alpaca's columns is."""
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
