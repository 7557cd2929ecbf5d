"""Tokenisation of rows: the tokens and the loss mask of a row at full length, before it is cut to documents."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from neoplug.data.encode.chat import ChatTemplate, Rendered
from neoplug.data.encode.conversations import ConversationRenderer, OnDrop, TrainOn, messages_of
from neoplug.data.encode.limits import LONGEST, TOO_LONG, characters
from neoplug.data.encode.teacher_encoder import Answer, TeacherEncoder, answers_of
from neoplug.data.encode.text_encoder import EncodedText, TextEncoder, Tokenizer
from neoplug.data.ingest.columns import Content

ROWS_AT_ONCE = 512  # rows in one call of the tokenizer

ALPACA = (
    "Below is an instruction that describes a task{also}. "
    "Write a response that appropriately completes the request.\n\n"
)
ALPACA_ALSO = ", paired with an input that provides further context"


@dataclass(frozen=True, eq=False)
class EncodedRow:
    """The tokens of a whole row.

    row             index of the row in its source
    input_ids       [L] int64
    loss_mask       [L] bool: the answer tokens; False for the first token
    windowed        whether the row is split into windows where it is too long; else it is truncated
    teacher_ids     [M] int64: the teacher's input where it has its own chat template; None where it is `input_ids`
    teacher_loss_mask  [M] bool: the same answer tokens in `teacher_ids`, one for one
    answers         the assistant turns of a conversation, or the completion of a prompt, for the teacher's text; () for
                    plain text, and for a conversation where the teacher reads the student's tokens
    notes           what is to be reported of the row; equal for all rows with the same note, since they are counted
    """

    row: int
    input_ids: np.ndarray
    loss_mask: np.ndarray
    windowed: bool
    teacher_ids: np.ndarray | None = None
    teacher_loss_mask: np.ndarray | None = None
    answers: Sequence[Answer] = ()
    notes: Sequence[str] = ()


class RowEncoder:
    """Tokenises rows of any kind for the student, and conversations also for a teacher with its own chat template.

    template  the student's chat template, Jinja text; None: that of the tokenizer
    teacher   None: the teacher reads the student's tokens
    keep_incomplete  keep rows of which a chat template leaves something out
    day       the date that the template reads, YYYY-MM-DD; None: the clock's
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str | None,
        train_on: TrainOn,
        teacher: TeacherEncoder | None = None,
        *,
        keep_incomplete: bool = False,
        day: str | None = None,
    ) -> None:
        self._text_encoder = TextEncoder(tokenizer)
        self._template = template
        self._train_on = train_on
        self._teacher = teacher
        self._keep_incomplete, self._day = keep_incomplete, day
        self._chat: ChatTemplate | None = None

    def encode(self, contents: Sequence[Content], on_drop: OnDrop) -> Iterator[EncodedRow]:
        """Yield the tokens of the rows in order, without those that are too long or not rendered whole.

        on_drop  is called with the number of each row that is left out, and the reason
        raises   RecipeError where a row is a conversation and there is no chat template, or where the template is not
                 valid or takes more time or memory than any row may
        """
        for batch in _batches(contents, on_drop):
            texts = [content for content in batch if content.kind == "text"]
            chats = [content for content in batch if self.is_chat(content)]
            completions = [content for content in batch if content.kind != "text" and not self.is_chat(content)]
            rows = [*self._texts(texts), *self._chats(chats, on_drop), *self._completions(completions)]
            rows.sort(key=lambda row: row.row)
            yield from rows if self._teacher is None else self._with_teacher(self._teacher, batch, rows, on_drop)

    def is_chat(self, content: Content) -> bool:
        """Return whether the row is rendered by a chat template: any conversation, Alpaca's if there is a template."""
        has_template = self._template is not None or bool(self._text_encoder.tokenizer.chat_template)
        return content.kind == "messages" or (content.kind == "alpaca" and has_template)

    def _texts(self, contents: Sequence[Content]) -> Iterator[EncodedRow]:
        texts = self._text_encoder.encode([content.values["text"] for content in contents])
        for content, text in zip(contents, texts, strict=True):
            ids = self._text_encoder.whole(text)
            yield _encoded(content, ids, prompt_tokens=0, windowed=True)

    def _completions(self, contents: Sequence[Content]) -> Iterator[EncodedRow]:
        """Yield the tokens of prompt and completion. The prompt has the tokens that generation starts from.

        Where a token of the joined text would span the border, the completion is tokenised separately.
        """
        encoder = self._text_encoder
        pairs = [_prompt_and_completion(content) for content in contents]
        prompts = encoder.encode([prompt for prompt, _ in pairs])
        joined = encoder.encode([prompt + completion for prompt, completion in pairs])
        for content, (_, text), prompt, whole in zip(contents, pairs, prompts, joined, strict=True):
            border_is_kept = whole[: len(prompt)] == prompt
            completion = whole[len(prompt) :] if border_is_kept else encoder.encode_continuation(text)
            opening = encoder.opened(prompt)
            given = [*opening, *completion]
            ids = encoder.ended(given, encoder.eos)
            row = _encoded(content, ids, 0 if self._train_on == "all" else len(opening), windowed=False)
            end_token = encoder.tokenizer.eos_token or ""
            if ids == given and encoder.eos:  # white space after the completion's own end token is not generated
                row.loss_mask[len(ids) - encoder.blank_at_end(ids) :] = False
                text, end_token = text.rstrip(), ""
            yield replace(row, answers=(Answer(row.input_ids[row.loss_mask], text + end_token, content=text),))

    def _chats(self, contents: Sequence[Content], on_drop: OnDrop) -> Iterator[EncodedRow]:
        if not contents:
            return
        self._chat = self._chat or ChatTemplate(self._text_encoder.tokenizer, self._template, day=self._day)
        rendered = ConversationRenderer(self._chat, self._train_on, self._keep_incomplete).render(contents, on_drop)
        encoded = self._text_encoder.encode_with_starts([text.text for text, _ in rendered.values()])
        messages = {content.number: messages_of(content) for content in contents}
        for (number, (text, notes)), tokens in zip(rendered.items(), encoded, strict=True):
            loss_mask = _loss_mask(tokens, text)
            answers = list(answers_of(tokens, loss_mask, text, messages[number])) if self._teacher else ()
            yield EncodedRow(number, tokens.input_ids, loss_mask, windowed=False, answers=answers, notes=notes)

    def _with_teacher(
        self, teacher: TeacherEncoder, contents: Sequence[Content], rows: Sequence[EncodedRow], on_drop: OnDrop
    ) -> Iterator[EncodedRow]:
        """Yield the rows, with the teacher's text for conversations; drop those whose teacher text cannot be made."""
        answers = {row.row: row.answers for row in rows}
        conversations = [c for c in contents if c.kind in ("messages", "alpaca") and c.number in answers]
        renderer = ConversationRenderer(teacher.chat, self._train_on, self._keep_incomplete)
        found = renderer.render(conversations, on_drop)
        rendered = {number: text for number, (text, _) in found.items()}
        for number, text in list(rendered.items()):
            expected = len(answers[number])
            if len(text.spans) != expected:
                on_drop(number, f"{expected} answers, of which the teacher's template renders {len(text.spans)}")
                del rendered[number]
        texts = teacher.encode(list(rendered.values()), [answers[number] for number in rendered])
        text_of = dict(zip(rendered, texts, strict=True))
        for number, (_, is_answer) in list(text_of.items()):
            if is_answer[:1].any():  # nothing predicts the first token
                on_drop(number, "the teacher's template has no text before the first answer")
                del text_of[number]
        dropped = {content.number for content in conversations} - text_of.keys()
        for row in rows:
            if row.row not in dropped:
                ids, loss_mask = text_of.get(row.row, (None, None))
                notes = [*row.notes, *(note for note in found.get(row.row, (None, ()))[1] if note not in row.notes)]
                yield replace(row, teacher_ids=ids, teacher_loss_mask=loss_mask, notes=notes)


def _batches(contents: Sequence[Content], on_drop: OnDrop) -> Iterator[list[Content]]:
    """Yield the rows in parts that the tokenizer has memory for, without rows that are too long for it alone."""
    batch: list[Content] = []
    total = 0
    for content in contents:
        length = characters(content.values)
        if length > LONGEST:
            on_drop(content.number, TOO_LONG)
            continue
        if batch and (len(batch) == ROWS_AT_ONCE or total + length > LONGEST):
            yield batch
            batch, total = [], 0
        batch.append(content)
        total += length
    if batch:
        yield batch


def _loss_mask(tokens: EncodedText, rendered: Rendered) -> np.ndarray:
    """Return [L] bool: the tokens that start inside a span.

    A token that starts before an answer and ends in it belongs to the prompt: generation, which starts from the prompt,
    never produces it. A token that starts in an answer and ends after it belongs to the answer.
    """
    loss_mask = np.zeros(len(tokens.input_ids), bool)
    for start, end in rendered.spans:
        loss_mask |= (tokens.starts >= start) & (tokens.starts < end)
    loss_mask[:1] = False
    return loss_mask


def _encoded(content: Content, ids: list[int], prompt_tokens: int, *, windowed: bool) -> EncodedRow:
    """Return a row whose answer tokens are all those after the prompt's."""
    loss_mask = np.arange(len(ids)) >= max(1, prompt_tokens)
    return EncodedRow(content.number, np.array(ids, np.int64), loss_mask, windowed)


def _prompt_and_completion(content: Content) -> tuple[str, str]:
    """Return prompt and completion; Alpaca rows get the prompt template of the Alpaca model."""
    if content.kind == "completion":
        return content.values["prompt"], content.values["completion"]
    values = content.values
    instruction = f"### Instruction:\n{values['instruction']}\n\n"
    context = f"### Input:\n{values['input']}\n\n" if "input" in values else ""
    opening = ALPACA.format(also=ALPACA_ALSO if context else "")
    return opening + instruction + context + "### Response:", values["output"]
