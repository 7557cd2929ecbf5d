"""How a teacher's tokenizer and chat template differ from the student's: what one should know before training.

The vocabularies are held against each other elsewhere. This is about what the two expect around a text: a teacher that
reads another model's prompts may say less than it knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neoplug.data.encode.chat import Chat, Message, Refused, Rendered, Unstable, template_text
from neoplug.data.encode.teacher_prompt import TeacherPrompt
from neoplug.data.encode.tokens import Tokenizer, Tokens
from neoplug.data.ingest.report import Report

if TYPE_CHECKING:
    from neoplug.recipe import Data

SPECIAL = ("bos_token", "eos_token", "pad_token")
ANSWER = "It is 4."
SAMPLE: list[Message] = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": ANSWER},
    {"role": "user", "content": "Are you sure?"},
    {"role": "assistant", "content": ANSWER},
]
TEACHER = "the teacher's tokenizer is not the student's: {}"  # a difference as a sentence of its own
SHOWN = 40  # characters of each text from where they differ


@dataclass(frozen=True)
class Templates:
    """What conversations are rendered by.

    student  None is the template of its tokenizer
    teacher  None where it has no prompts of its own: it reads the student's, and its tokenizer's is what it expects
    """

    student: str | None
    teacher: str | None


def differences(student: Tokenizer, teacher: Tokenizer, templates: Templates | None) -> list[str]:
    """Return in words, a line each, what the teacher does otherwise than the student; no `templates`, no chats."""
    special = [
        f"its {name} is {theirs!r}, the student's is {ours!r}"
        for name in SPECIAL
        if (theirs := getattr(teacher, name)) != (ours := getattr(student, name))
    ]
    around = [
        f"it puts {theirs or 'nothing'} {place} a text, the student's tokenizer {ours or 'nothing'}"
        for place, theirs, ours in zip(("before", "after"), _around(teacher), _around(student), strict=True)
        if theirs != ours
    ]
    return [*special, *around, *(_of_templates(student, teacher, templates) if templates else ())]


def _around(tokenizer: Tokenizer) -> list[list[str]]:
    tokens = Tokens(tokenizer)
    return [tokenizer.convert_ids_to_tokens(ids) for ids in (tokens.prefix, tokens.suffix)]


def _of_templates(student: Tokenizer, teacher: Tokenizer, templates: Templates) -> Iterator[str]:
    pairs = ((student, templates.student), (teacher, templates.teacher))
    if not all(template or tokenizer.chat_template for tokenizer, template in pairs):
        return
    try:
        ours, theirs = (Chat(tokenizer, template).render(SAMPLE, "answers") for tokenizer, template in pairs)
    except (Refused, Unstable) as error:
        yield f"its chat template cannot be compared with the student's: {error}"
        return
    if templates.teacher is None and theirs.text != ours.text:
        yield f"its chat template writes otherwise {_first_difference(theirs.text, ours.text)}"
    if _closer(theirs) != _closer(ours):
        yield f"it closes an answer with {_closer(theirs)!r}; the student's {_closer(ours)!r} is what it is asked about"


def _first_difference(theirs: str, ours: str) -> str:
    at = next((n for n, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), min(len(theirs), len(ours)))
    return f"from character {at} on: {theirs[at : at + SHOWN]!r}, the student's {ours[at : at + SHOWN]!r}"


def _closer(rendered: Rendered) -> str:
    """Return what stands in the sample's first answer after its words."""
    start, end = rendered.spans[0]
    return rendered.text[start:end].partition(ANSWER)[2]


def templates_of(data: Data, prompt: TeacherPrompt | None, report: Report) -> Templates | None:
    """Return what a recipe's conversations are rendered by; None where its rows hold no conversation."""
    if not report.kinds.keys() & {"messages", "alpaca"}:
        return None
    return Templates(template_text(data.chat_template), prompt.chat.template if prompt else None)
