"""Rendering of conversations by a chat template, and the spans of the text that are assistant turns.

A template that marks the assistant's text with {% generation %} gives the spans itself. With any other, a conversation
is rendered twice for each assistant turn: with the messages before the turn and a generation prompt, and with the turn.
The turn's span is the text that only the second has. That requires that a template renders earlier messages the same
when messages are added, which is verified for each turn of each row.
"""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from neoplug.data.encode.text_encoder import Tokenizer
from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError

Message = Mapping[str, Any]
Tools = Sequence[Any] | None  # JSON schemas of functions, the argument `tools` of transformers' chat templates
Span = tuple[int, int]  # characters of the rendered text, end excluded

STUDENT_KEY: Key = ("data", "chat_template")
SAMPLE_USER_TURN: Sequence[Message] = ({"role": "user", "content": "?"},)
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class UnstableTemplate(Exception):
    """Adding a message to a conversation changes the text of the messages before it, so that no span can be found."""


class RenderError(Exception):
    """The template cannot render a conversation; the text is that of the exception raised by or in the template."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, and the spans of its assistant turns, each with the token that ends the turn."""

    text: str
    spans: list[Span]


class ChatTemplate:
    """Renders conversations with one chat template."""

    def __init__(self, tokenizer: Tokenizer, template: str | None, key: Key = STUDENT_KEY) -> None:
        """Use the tokenizer's template where `template`, Jinja text, is None.

        key     the recipe's key of the template, for errors
        raises  RecipeError where there is no template, or it is not valid Jinja
        """
        self.tokenizer, self.key = tokenizer, key
        self._options: Mapping[str, Any] = {}
        try:
            self.template: str = tokenizer.get_chat_template(template)
        except ValueError as error:
            raise RecipeError([_no_template(key)]) from error
        self._end_tokens = tuple({*tokenizer.all_special_tokens, *tokenizer.added_tokens_encoder})
        try:
            self._text(SAMPLE_USER_TURN)
        except RenderError as error:  # a valid template may refuse this conversation and still render the rows
            if isinstance(error.__cause__, jinja2.TemplateSyntaxError):
                raise RecipeError([_invalid_jinja(error.__cause__, key)]) from error

    def with_options(self, options: Mapping[str, Any] | None) -> "ChatTemplate":
        """Return this template with options of `chat_template_kwargs`, such as `enable_thinking`."""
        if not options:
            return self
        changed = copy.copy(self)
        changed._options = options
        return changed

    def render(self, messages: Sequence[Message], turns: str, tools: Tools = None) -> Rendered:
        """Return the conversation's text and the spans of its assistant turns.

        turns   `answers` all assistant turns | `last` the last one | `all` the whole text
        raises  UnstableTemplate; RenderError where the template cannot render the conversation
        """
        if turns == "all":
            text = self._text(messages, tools)
            return Rendered(text, [(0, len(text))])
        if GENERATION.search(self.template):
            text, spans = self._text_and_marked_spans(messages, tools)
        else:
            text = self._text(messages, tools)
            spans = list(self._turn_spans(messages, tools, text, only_last=turns == "last"))
        return Rendered(text, spans[-1:] if turns == "last" else spans)

    def _text(self, messages: Sequence[Message], tools: Tools = None, *, generation_prompt: bool = False) -> str:
        with _render_errors():
            text: str = self.tokenizer.apply_chat_template(
                list(messages),
                tools=tools,
                chat_template=self.template,
                add_generation_prompt=generation_prompt,
                tokenize=False,
                **self._options,
            )
            return text

    def _text_and_marked_spans(self, messages: Sequence[Message], tools: Tools) -> tuple[str, list[Span]]:
        """Return the text and the spans inside {% generation %}, each with the end token that follows it."""
        from transformers.utils.chat_template_utils import render_jinja_template

        with _render_errors():
            texts, spans = render_jinja_template(
                conversations=[list(messages)],
                tools=tools,
                chat_template=self.template,
                return_assistant_tokens_mask=True,
                **{**self.tokenizer.special_tokens_map, **self._options},
            )
        end = self.tokenizer.eos_token or ""
        return texts[0], [(a, b + len(end) if end and texts[0].startswith(end, b) else b) for a, b in spans[0] if b > a]

    def _turn_spans(self, messages: Sequence[Message], tools: Tools, text: str, *, only_last: bool) -> Iterator[Span]:
        """Yield the span of each assistant turn; `text` is that of the whole conversation."""
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        for index in turns[-1:] if only_last else turns:
            answered = text if index + 1 == len(messages) else self._text(messages[: index + 1], tools)
            start = len(self._prompt(messages[:index], tools, answered))
            if not text.startswith(answered):
                raise UnstableTemplate(_difference(text, answered))
            yield start, self._end_of_turn(answered)

    def _prompt(self, before: Sequence[Message], tools: Tools, answered: str) -> str:
        """Return the text before an answer: the messages `before` it and the generation prompt.

        answered  the text of the same conversation with the answer
        """
        if before:
            prompt = self._text(before, tools, generation_prompt=True)
            if not answered.startswith(prompt):
                raise UnstableTemplate(_difference(answered, prompt))
            return prompt
        return self._prompt_of_first_turn(answered)

    def _prompt_of_first_turn(self, answered: str) -> str:
        """Return the text before an answer that is the first message.

        Templates render no empty conversation, so the generation prompt is taken from a sample and located in the text.
        """
        prompted = self._text(SAMPLE_USER_TURN, generation_prompt=True)
        header = prompted.removeprefix(self._text(SAMPLE_USER_TURN))
        at = answered.find(header)
        if at < 0:
            raise UnstableTemplate(f"the assistant's header {header!r} is not in {answered!r}")
        return answered[: at + len(header)]

    def _end_of_turn(self, answered: str) -> int:
        """Return the end of the turn's span: whitespace after the end token is left out, since it is not generated."""
        stripped = answered.rstrip()
        return len(stripped) if stripped.endswith(self._end_tokens) else len(answered)


def _difference(longer: str, shorter: str) -> str:
    """Return where the text of a conversation first differs from that of its first messages."""
    at = next((n for n, (a, b) in enumerate(zip(longer, shorter, strict=False)) if a != b), len(longer))
    return f"at character {at}: {shorter[at : at + 40]!r} became {longer[at : at + 40]!r}"


@contextmanager
def _render_errors() -> Iterator[None]:
    """Turn any exception of a template into a RenderError; a template can raise any Python exception."""
    try:
        yield
    except jinja2.TemplateError as error:
        raise RenderError(str(error)) from error
    except Exception as error:
        raise RenderError(f"{type(error).__name__}: {error}") from error


def unstable_template_error(error: UnstableTemplate, row: int, key: Key = STUDENT_KEY) -> RecipeError:
    """Return the error about a row in whose rendered text the assistant turns cannot be located."""
    template = "chat template" if key == STUDENT_KEY else "teacher's chat template"
    return RecipeError(
        [
            Problem(
                f"the {template} changes earlier text when a turn is added (row {row}, {error})",
                why="the assistant's turns cannot be located then; some templates drop the reasoning of earlier turns",
                fix="train_on: last (or all), or a chat_template that keeps turns or marks them with {% generation %}",
                path=key,
            )
        ]
    )


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


def template_text(template: str | None, key: Key = STUDENT_KEY) -> str | None:
    """Return the recipe's chat template: the text itself, or the content of the file that it names."""
    if template is None or "{" in template:
        return template
    try:
        return Path(template).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fix = "set chat_template to Jinja text or to the path of a file with it"
        what = f"the chat template {template} cannot be read: {error}"
        raise RecipeError([Problem(what, fix=fix, path=key)]) from error
