"""Conversations to text, and which characters of it the assistant wrote.

A template that marks the assistant's text with {% generation %} is taken at its word. For any other, a turn is what
the template adds to the conversation so far, ready to be answered, once the answer is there. That holds only where the
text of a conversation starts with the text of its beginning, so it is checked for each turn of each row.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neoplug.data.tokens import Tokenizer
from neoplug.errors import Problem, RecipeError

Message = Mapping[str, Any]
Span = tuple[int, int]  # characters of the rendered text, end excluded

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Unstable(Exception):
    """The text of a conversation does not start with the text of its beginning."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, and the spans of it that the assistant wrote, each with what closes the turn."""

    text: str
    spans: list[Span]


class Chat:
    """A chat template, applied."""

    def __init__(self, tokenizer: Tokenizer, template: str | None) -> None:
        """Take the tokenizer's own template where `template` is None; RecipeError where it has none either."""
        self.tokenizer = tokenizer
        try:
            self.template: str = tokenizer.get_chat_template(template)
        except ValueError as error:
            fix = "name a template in chat_template, or use rows of prompt + completion or text"
            what = "these rows are conversations, and the tokenizer has no chat template"
            raise RecipeError([Problem(what, fix=fix, path=("data", "chat_template"))]) from error
        self._closers = tuple({*tokenizer.all_special_tokens, *tokenizer.added_tokens_encoder})

    def render(self, messages: Sequence[Message], turns: str) -> Rendered:
        """Return the conversation's text and the spans of its assistant turns.

        turns   `answers` all assistant turns | `last` the last one | `all` the whole text
        raises  Unstable; jinja2.TemplateError where the template refuses the conversation
        """
        if turns == "all":
            text = self._text(messages)
            return Rendered(text, [(0, len(text))])
        if GENERATION.search(self.template):
            text, spans = self._marked(messages)
        else:
            text = self._text(messages)
            spans = list(self._turns(messages, text, only_last=turns == "last"))
        return Rendered(text, spans[-1:] if turns == "last" else spans)

    def _text(self, messages: Sequence[Message], *, ready: bool = False) -> str:
        return self.tokenizer.apply_chat_template(
            list(messages), chat_template=self.template, add_generation_prompt=ready, tokenize=False
        )

    def _marked(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """Return the text and the spans inside {% generation %}, each with the end token that follows it."""
        from transformers.utils.chat_template_utils import render_jinja_template

        texts, spans = render_jinja_template(
            conversations=[list(messages)],
            chat_template=self.template,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        end = self.tokenizer.eos_token or ""
        return texts[0], [(a, b + len(end) if end and texts[0].startswith(end, b) else b) for a, b in spans[0] if b > a]

    def _turns(self, messages: Sequence[Message], text: str, *, only_last: bool) -> Iterator[Span]:
        turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        for number in turns[-1:] if only_last else turns:
            answered = text if number + 1 == len(messages) else self._text(messages[: number + 1])
            start = len(self._opening(messages[:number], answered))
            if not text.startswith(answered):
                raise Unstable(_difference(text, answered))
            yield start, self._closed(answered)

    def _opening(self, before: Sequence[Message], answered: str) -> str:
        """Return the text up to the answer; `answered` is the same conversation with it."""
        if before:
            opening = self._text(before, ready=True)
            if not answered.startswith(opening):
                raise Unstable(_difference(answered, opening))
            return opening
        return self._first_opening(answered)

    def _first_opening(self, answered: str) -> str:
        """Return the text up to an answer that opens the conversation; templates render no empty one."""
        stranger = [{"role": "user", "content": "?"}]
        header = self._text(stranger, ready=True).removeprefix(self._text(stranger))
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


def unstable(error: Unstable, row: int) -> RecipeError:
    """Say which row a template renders in a way that hides where its answers stand."""
    return RecipeError(
        [
            Problem(
                f"the chat template changes earlier text when a turn is added (row {row}, {error})",
                why="so the assistant's turns cannot be found; some templates drop the thoughts of earlier turns",
                fix="train_on: last (or all), or a chat_template that keeps turns or marks them with {% generation %}",
                path=("data", "chat_template"),
            )
        ]
    )


def template_text(template: str | None) -> str | None:
    """Return the recipe's chat template: the text itself, or that of the file it names."""
    if template is None or "{" in template:
        return template
    try:
        return Path(template).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fix = "a chat_template is Jinja text or the path of a file that holds it"
        what = f"the chat template {template} cannot be read: {error}"
        raise RecipeError([Problem(what, fix=fix, path=("data", "chat_template"))]) from error
