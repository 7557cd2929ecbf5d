"""Rendering of conversations by a chat template, and the spans of the text that are assistant turns.

Each row is rendered by the template that transformers chooses for it: of a tokenizer with several named ones, rows with
tools get `tool_use`. A template that marks the assistant's text with {% generation %} gives the spans itself. With any
other, a conversation is rendered twice for each assistant turn: with the messages before the turn and a generation
prompt, and with the turn. The turn's span is the text that only the second has. That requires that a template renders
earlier messages the same when messages are added, which is verified for each turn of each row.
"""

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2

from neoplug.data.encode.clock import pinned_clock, reads_clock
from neoplug.data.encode.faults import (
    CHANGES_EARLIER_TEXT,
    CHANGES_PROMPT,
    END_ADDED,
    NO_END,
    NO_HEADER,
    OPENS_MORE,
)
from neoplug.data.encode.limits import LimitError, render_limits
from neoplug.data.encode.stop_tokens import StopTokens, closer_in
from neoplug.data.encode.text_encoder import Tokenizer
from neoplug.data.ingest.messages import is_unscored
from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError

Message = Mapping[str, Any]
Tools = Sequence[Any] | None  # JSON schemas of functions, the argument `tools` of transformers' chat templates
Span = tuple[int, int]  # characters of the rendered text, end excluded

STUDENT_KEY: Key = ("data", "chat_template")
SAMPLE_USER_TURN: Sequence[Message] = ({"role": "user", "content": "?"},)
SAMPLE_ANSWER = "It is 4."
SAMPLE: Sequence[Message] = (*SAMPLE_USER_TURN, {"role": "assistant", "content": SAMPLE_ANSWER}, *SAMPLE_USER_TURN)
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class UnstableTemplate(Exception):
    """The assistant's turns cannot be located in the text of a conversation.

    reason   the cause, equal for all rows with the same fault
    details  where in the text of this row
    """

    def __init__(self, reason: str, details: str) -> None:
        super().__init__(f"{reason}: {details}")
        self.reason, self.details = reason, details


class RenderError(Exception):
    """The template cannot render a conversation; the text is that of the exception raised by or in the template."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    spans  the scored parts of the text: its assistant turns, each with the token that ends the turn
    turns  the index of each span's message; empty where the whole text is one span
    """

    text: str
    spans: list[Span]
    turns: list[int] = field(default_factory=list)


class ChatTemplate:
    """Renders conversations with one chat template, or with the named ones of a tokenizer.

    given     the Jinja text of the recipe; None: the tokenizer's
    template  the template of rows without tools
    """

    def __init__(
        self, tokenizer: Tokenizer, template: str | None, key: Key = STUDENT_KEY, day: str | None = None
    ) -> None:
        """Use the tokenizer's template where `template`, Jinja text, is None.

        key     the recipe's key of the template, for errors
        day     the date that the template reads, YYYY-MM-DD; None: the clock's
        raises  RecipeError where there is no template, or it is not valid Jinja
        """
        self.tokenizer, self.key = tokenizer, key
        self._options: Mapping[str, Any] = {}
        self._with_options: dict[str, ChatTemplate] = {}  # options in JSON -> this template with them
        self.given, self._day = template, day
        self.template = self._template_of_rows_without_tools()
        try:
            self.text(SAMPLE_USER_TURN)
        except RenderError as error:  # a valid template may refuse this conversation and still render the rows
            if isinstance(error.__cause__, jinja2.TemplateSyntaxError):
                raise RecipeError([_invalid_jinja(error.__cause__, key)]) from error

    def with_options(self, options: Mapping[str, Any] | None) -> "ChatTemplate":
        """Return this template with options of `chat_template_kwargs`, such as `enable_thinking`."""
        if not options:
            return self
        key = json.dumps(options, sort_keys=True, default=str)
        if key not in self._with_options:
            changed = copy.copy(self)
            changed._options = options
            for name in ("stop_tokens", "_end_marks"):  # cached properties, which may depend on the options
                changed.__dict__.pop(name, None)
            self._with_options[key] = changed
        return self._with_options[key]

    def _template_of_rows_without_tools(self) -> str:
        named = self.tokenizer.chat_template
        choices: Sequence[Tools] = (None, []) if isinstance(named, dict) else (None,)
        for tools in choices:
            try:
                template: str = self.tokenizer.get_chat_template(self.given, tools)
                return template
            except ValueError as error:
                cause = error
        problem = _no_default(named, self.key) if isinstance(named, dict) and named else _no_template(self.key)
        raise RecipeError([problem]) from cause

    @property
    def reads_clock(self) -> bool:
        """Return whether a template may read the clock."""
        return reads_clock(self.given or self.tokenizer.chat_template)

    def template_of(self, tools: Tools) -> str:
        """Return the template of a row with these tools. RenderError where none of the named ones is for it."""
        with _render_errors():
            template: str = self.tokenizer.get_chat_template(self.given, tools)
            return template

    def render(self, messages: Sequence[Message], turns: str, tools: Tools = None) -> Rendered:
        """Return the conversation's text and the spans of its assistant turns.

        turns   `answers` all assistant turns | `last` the last one | `all` the whole text; always without the turns
                that the row itself excludes from the loss
        raises  UnstableTemplate; RenderError where the template cannot render the conversation
        """
        chosen = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        chosen = chosen[-1:] if turns == "last" else chosen
        unscored = [index for index, message in enumerate(messages) if is_unscored(message)]
        if turns == "all":
            text = self.text(messages, tools)
            return Rendered(text, self._without(unscored, [(0, len(text))], messages, tools, text))
        if GENERATION.search(self.template_of(tools)):
            return self._marked(messages, tools, chosen, unscored)
        text = self.text(messages, tools)
        scored = [index for index in chosen if index not in unscored]
        return Rendered(text, [self._turn_span(messages, tools, text, index) for index in scored], scored)

    def closed(self, rendered: Rendered, messages: Sequence[Message]) -> tuple[Rendered, str]:
        """Return the conversation with the tokenizer's end token after a last answer that no stop token ends.

        Also return what is to be reported of it; empty where a stop token of the template ends each scored answer.
        """
        text, spans, note = rendered.text, rendered.spans, ""
        eos = self.tokenizer.eos_token or ""
        open_end = messages[-1]["role"] == "assistant" and spans[-1:] and spans[-1][1] == len(text)
        if eos and open_end and not self.stop_tokens.closes(text):
            text, note = text + eos, END_ADDED.format(eos)
            spans = [*spans[:-1], (spans[-1][0], len(text))]
        checked = spans if len(rendered.turns) == len(spans) else spans[-1:] if open_end else []
        if not all(self.stop_tokens.closes(text[start:end]) for start, end in checked):
            note = NO_END
        return replace(rendered, text=text, spans=spans), note

    @cached_property
    def stop_tokens(self) -> StopTokens:
        """The tokens that end a turn of this template."""
        closer = ""
        with suppress(RenderError):
            closer = closer_in(self.tokenizer, self.text(SAMPLE), SAMPLE_ANSWER)
        return StopTokens(self.tokenizer, closer)

    @cached_property
    def _end_marks(self) -> str:
        """Return what the template writes after the last turn of a conversation only, such as an end-of-text token."""
        with suppress(RenderError):
            text = self.text(SAMPLE[:2])
            marks = text[self.stop_tokens.common_length(text, self.text(SAMPLE)) :]
            return marks if self.stop_tokens.is_blank(marks) else ""
        return ""

    def text(self, messages: Sequence[Message], tools: Tools = None, *, generation_prompt: bool = False) -> str:
        """Return the conversation's text.

        raises  RenderError where the template cannot render it; RecipeError where that takes more than a limit
        """
        with self._limits(), _render_errors(), pinned_clock(self._day):
            text: str = self.tokenizer.apply_chat_template(
                list(messages),
                tools=tools,
                chat_template=self.given,
                add_generation_prompt=generation_prompt,
                tokenize=False,
                **self._options,
            )
            return text

    @contextmanager
    def _limits(self) -> Iterator[None]:
        """Raise RecipeError in the block where the template takes more time or memory than any row may."""
        try:
            with render_limits():
                yield
        except LimitError as error:
            whose = "the chat template" if self.given else "the tokenizer's chat template"
            what, why = f"{whose} {error} for one conversation", "it has a loop or a text that grows without end"
            raise RecipeError([Problem(what, why, "use another template", self.key)]) from error

    def _marked(
        self, messages: Sequence[Message], tools: Tools, chosen: Sequence[int], unscored: Sequence[int]
    ) -> Rendered:
        """Return the text and the spans inside {% generation %} of the chosen turns, each with its stop token."""
        from transformers.utils.chat_template_utils import render_jinja_template

        with self._limits(), _render_errors(), pinned_clock(self._day):
            texts, marks = render_jinja_template(
                conversations=[list(messages)],
                tools=tools,
                chat_template=self.template_of(tools),
                return_assistant_tokens_mask=True,
                **{**self.tokenizer.special_tokens_map, **self._options},
            )
        text = texts[0]
        spans = [(a, self.stop_tokens.end_of_turn(text, a, b)) for a, b in marks[0] if b > a]
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if len(spans) != len(answers):  # not one mark for each turn
            spans = spans[-1:] if len(chosen) < len(answers) else spans
            return Rendered(text, self._without(unscored, spans, messages, tools, text))
        scored = {index: span for index, span in zip(answers, spans, strict=True) if index in chosen}
        scored = {index: span for index, span in scored.items() if index not in unscored}
        return Rendered(text, list(scored.values()), list(scored))

    def _turn_span(self, messages: Sequence[Message], tools: Tools, text: str, index: int) -> Span:
        """Return the span of one assistant turn; `text` is that of the whole conversation."""
        answered = text if index + 1 == len(messages) else self.text(messages[: index + 1], tools)
        try:
            kept = self._kept(answered, text, is_last=index + 1 == len(messages))
            start = len(self._prompt(messages[:index], tools, answered))
        except UnstableTemplate as error:
            later = any(message["role"] == "assistant" for message in messages[index + 1 :])
            if error.reason != CHANGES_EARLIER_TEXT or later:
                raise
            raise UnstableTemplate(CHANGES_PROMPT, error.details) from error
        return start, self.stop_tokens.end_of_turn(text, start, max(start, kept))

    def _kept(self, beginning: str, text: str, *, is_last: bool = False) -> int:
        """Return how much of the text of the first messages is also in that of the whole conversation, `text`.

        End marks after the last turn may go when a turn is added.

        raises  UnstableTemplate where anything else goes
        """
        if is_last:
            return len(text.removesuffix(self._end_marks))
        kept = self.stop_tokens.common_length(beginning, text)
        if not self.stop_tokens.is_blank(beginning[kept:]):
            raise UnstableTemplate(CHANGES_EARLIER_TEXT, _difference(text, beginning))
        return kept

    def _prompt(self, before: Sequence[Message], tools: Tools, answered: str) -> str:
        """Return the text before an answer: the messages `before` it and the generation prompt.

        answered  the text of the same conversation with the answer
        """
        if not before:
            return self._prompt_of_first_turn(answered)
        prompt = self.text(before, tools, generation_prompt=True)
        if not answered.startswith(prompt):
            self._kept(self.text(before, tools), answered)
            opened = prompt[self.stop_tokens.common_length(prompt, answered) :]
            raise UnstableTemplate(OPENS_MORE.format(opened), _difference(answered, prompt))
        return prompt

    def _without(
        self, unscored: Sequence[int], spans: Sequence[Span], messages: Sequence[Message], tools: Tools, text: str
    ) -> list[Span]:
        """Return the spans without the parts that belong to the unscored messages."""
        parts = list(spans)
        for index in unscored:
            first = self._kept(self.text(messages[:index], tools), text) if index else 0
            is_last = index + 1 == len(messages)
            after = len(text) if is_last else self._kept(self.text(messages[: index + 1], tools), text)
            parts = [part for start, end in parts for part in ((start, min(end, first)), (max(start, after), end))]
            parts = [(start, end) for start, end in parts if start < end]
        return parts

    def _prompt_of_first_turn(self, answered: str) -> str:
        """Return the text before an answer that is the first message.

        Templates render no empty conversation, so the generation prompt is taken from a sample and located in the text.
        """
        prompted = self.text(SAMPLE_USER_TURN, generation_prompt=True)
        header = prompted.removeprefix(self.text(SAMPLE_USER_TURN))
        at = answered.find(header)
        if at < 0:
            raise UnstableTemplate(NO_HEADER, f"the assistant's header {header!r} is not in {answered!r}")
        return answered[: at + len(header)]


def _difference(longer: str, shorter: str) -> str:
    """Return where the text of a conversation first differs from that of its first messages."""
    at = next((n for n, (a, b) in enumerate(zip(longer, shorter, strict=False)) if a != b), len(longer))
    return f"at character {at}: {shorter[at : at + 40]!r} became {longer[at : at + 40]!r}"


@contextmanager
def _render_errors() -> Iterator[None]:
    """Turn any exception of a template into a RenderError; a template can raise any Python exception."""
    try:
        yield
    except (LimitError, MemoryError):
        raise
    except jinja2.TemplateError as error:
        raise RenderError(str(error)) from error
    except Exception as error:
        raise RenderError(f"{type(error).__name__}: {error}") from error


def _no_default(named: Mapping[str, str], key: Key) -> Problem:
    names = ", ".join(sorted(named))
    what = f"the tokenizer has several chat templates ({names}), and none of them is named default"
    return Problem(what, fix=f"name one of them, as in chat_template: {next(iter(named))}", path=key)


def _no_template(key: Key) -> Problem:
    if key == STUDENT_KEY:
        what, fix = "these rows are conversations, and the tokenizer", "or use rows of prompt + completion or text"
    else:
        what, fix = "the teacher's tokenizer", "or remove the key: the teacher then reads the student's tokens"
    return Problem(f"{what} has no chat template", fix=f"name a template in chat_template, {fix}", path=key)


def _invalid_jinja(error: jinja2.TemplateSyntaxError, key: Key) -> Problem:
    line = error.source.splitlines()[error.lineno - 1].strip() if error.source else ""
    return Problem(
        f"the chat template is not valid Jinja: {error.message}", f"line {error.lineno} is {line[:80]!r}", path=key
    )


def template_text(template: str | None, tokenizer: Tokenizer, key: Key = STUDENT_KEY) -> str | None:
    """Return the recipe's chat template: the text itself, one that the tokenizer has under this name, or a file's."""
    named = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
    if template is None or "{" in template:
        return template
    if template in named:
        found: str = named[template]
        return found
    try:
        return Path(template).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fix = "set chat_template to Jinja text or to the path of a file with it"
        fix += f", or to a name that the tokenizer has: {', '.join(sorted(named))}" if named else ""
        what = f"the chat template {template} cannot be read: {error}"
        raise RecipeError([Problem(what, fix=fix, path=key)]) from error
