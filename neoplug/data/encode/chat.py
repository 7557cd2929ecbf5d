"""Conversations to text, and which characters of it the assistant wrote.

A template that marks the assistant's text with {% generation %} is taken at its word. For any other, a turn is what
the template adds to the conversation so far, ready to be answered, once the answer is there. That holds only where the
text of a conversation starts with the text of its beginning, so it is checked for each turn of each row.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from neoplug.data.encode.tokens import Tokenizer
from neoplug.errors import Path as Key
from neoplug.errors import Problem, RecipeError

Message = Mapping[str, Any]
Tools = Sequence[Any] | None  # what the assistant may call, as transformers' templates take it
Span = tuple[int, int]  # characters of the rendered text, end excluded

OWN_KEY: Key = ("data", "chat_template")
STRANGER: Sequence[Message] = ({"role": "user", "content": "?"},)
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Unstable(Exception):
    """The text of a conversation does not start with the text of its beginning."""


class Refused(Exception):
    """The template does not take a conversation: its own words, or what went wrong in it."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, and the spans of it that the assistant wrote, each with what closes the turn."""

    text: str
    spans: list[Span]


class Chat:
    """A chat template, applied."""

    def __init__(self, tokenizer: Tokenizer, template: str | None, key: Key = OWN_KEY) -> None:
        """Take the tokenizer's own template where `template` is None.

        key     where the recipe names the template
        raises  RecipeError where there is no template, or what there is is no Jinja
        """
        self.tokenizer, self.key = tokenizer, key
        try:
            self.template: str = tokenizer.get_chat_template(template)
        except ValueError as error:
            raise RecipeError([_no_template(key)]) from error
        self._closers = tuple({*tokenizer.all_special_tokens, *tokenizer.added_tokens_encoder})
        try:
            self._text(STRANGER)
        except Refused as error:  # anything but broken Jinja is for the rows to find out
            if isinstance(error.__cause__, jinja2.TemplateSyntaxError):
                raise RecipeError([_no_jinja(error.__cause__, key)]) from error

    def render(self, messages: Sequence[Message], turns: str, tools: Tools = None) -> Rendered:
        """Return the conversation's text and the spans of its assistant turns.

        turns   `answers` all assistant turns | `last` the last one | `all` the whole text
        raises  Unstable; Refused where the template does not take the conversation
        """
        if turns == "all":
            text = self._text(messages, tools)
            return Rendered(text, [(0, len(text))])
        if GENERATION.search(self.template):
            text, spans = self._marked(messages, tools)
        else:
            text = self._text(messages, tools)
            spans = list(self._turns(messages, tools, text, only_last=turns == "last"))
        return Rendered(text, spans[-1:] if turns == "last" else spans)

    def _text(self, messages: Sequence[Message], tools: Tools = None, *, ready: bool = False) -> str:
        with _refusing():
            return self.tokenizer.apply_chat_template(
                list(messages), tools=tools, chat_template=self.template, add_generation_prompt=ready, tokenize=False
            )

    def _marked(self, messages: Sequence[Message], tools: Tools) -> tuple[str, list[Span]]:
        """Return the text and the spans inside {% generation %}, each with the end token that follows it."""
        from transformers.utils.chat_template_utils import render_jinja_template

        with _refusing():
            texts, spans = render_jinja_template(
                conversations=[list(messages)],
                tools=tools,
                chat_template=self.template,
                return_assistant_tokens_mask=True,
                **self.tokenizer.special_tokens_map,
            )
        end = self.tokenizer.eos_token or ""
        return texts[0], [(a, b + len(end) if end and texts[0].startswith(end, b) else b) for a, b in spans[0] if b > a]

    def _turns(self, messages: Sequence[Message], tools: Tools, text: str, *, only_last: bool) -> Iterator[Span]:
        turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        for number in turns[-1:] if only_last else turns:
            answered = text if number + 1 == len(messages) else self._text(messages[: number + 1], tools)
            start = len(self._opening(messages[:number], tools, answered))
            if not text.startswith(answered):
                raise Unstable(_difference(text, answered))
            yield start, self._closed(answered)

    def _opening(self, before: Sequence[Message], tools: Tools, answered: str) -> str:
        """Return the text up to the answer; `answered` is the same conversation with it."""
        if before:
            opening = self._text(before, tools, ready=True)
            if not answered.startswith(opening):
                raise Unstable(_difference(answered, opening))
            return opening
        return self._first_opening(answered)

    def _first_opening(self, answered: str) -> str:
        """Return the text up to an answer that opens the conversation; templates render no empty one."""
        header = self._text(STRANGER, ready=True).removeprefix(self._text(STRANGER))
        at = answered.find(header)
        if at < 0:
            raise Unstable(f"the assistant's header {header!r} is not in {answered!r}")
        return answered[: at + len(header)]

    def _closed(self, answered: str) -> int:
        """Return where the turn ends: after its closing token. Blanks after that are never generated."""
        bare = answered.rstrip()
        return len(bare) if bare.endswith(self._closers) else len(answered)


def _difference(whole: str, beginning: str) -> str:
    at = next((n for n, (a, b) in enumerate(zip(whole, beginning, strict=False)) if a != b), len(whole))
    return f"at character {at}: {beginning[at : at + 40]!r} became {whole[at : at + 40]!r}"


@contextmanager
def _refusing() -> Iterator[None]:
    """Say what a template says that raises; a template can raise whatever Python can."""
    try:
        yield
    except jinja2.TemplateError as error:
        raise Refused(str(error)) from error
    except Exception as error:
        raise Refused(f"{type(error).__name__}: {error}") from error


def unstable(error: Unstable, row: int, key: Key = OWN_KEY) -> RecipeError:
    """Say which row a template renders in a way that hides where its answers stand."""
    whose = "chat template" if key == OWN_KEY else "teacher's chat template"
    return RecipeError(
        [
            Problem(
                f"the {whose} changes earlier text when a turn is added (row {row}, {error})",
                why="so the assistant's turns cannot be found; some templates drop the thoughts of earlier turns",
                fix="train_on: last (or all), or a chat_template that keeps turns or marks them with {% generation %}",
                path=key,
            )
        ]
    )


def _no_template(key: Key) -> Problem:
    if key == OWN_KEY:
        what, fix = "these rows are conversations, and the tokenizer", "or use rows of prompt + completion or text"
    else:
        what, fix = "the teacher's tokenizer", "or leave it out: the teacher then reads the student's tokens"
    return Problem(f"{what} has no chat template", fix=f"name a template in chat_template, {fix}", path=key)


def _no_jinja(error: jinja2.TemplateSyntaxError, key: Key) -> Problem:
    line = error.source.splitlines()[error.lineno - 1].strip() if error.source else ""
    return Problem(f"the chat template is no Jinja: {error.message}", f"line {error.lineno} is {line[:80]!r}", path=key)


def template_text(template: str | None, key: Key = OWN_KEY) -> str | None:
    """Return the recipe's chat template: the text itself, or that of the file it names."""
    if template is None or "{" in template:
        return template
    try:
        return Path(template).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fix = "a chat_template is Jinja text or the path of a file that holds it"
        what = f"the chat template {template} cannot be read: {error}"
        raise RecipeError([Problem(what, fix=fix, path=key)]) from error
