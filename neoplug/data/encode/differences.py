"""Differences between the tokenizers and chat templates of teacher and student, reported before training.

They concern special tokens and templates; vocabularies are compared in `models`. A teacher that reads prompts in a
format it was not trained on may give worse predictions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from neoplug.data.encode.chat import ChatTemplate, Message, Rendered, RenderError, UnstableTemplate, template_text
from neoplug.data.encode.teacher_encoder import TeacherEncoder
from neoplug.data.encode.text_encoder import TextEncoder, Tokenizer
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
DIFFERENCE = "the teacher differs from the student: {}"  # around each sentence of `differences`
SHOWN = 40  # characters of each text after the first difference


@dataclass(frozen=True)
class Templates:
    """The chat templates of a run, as Jinja text.

    student  None: the template of the student's tokenizer
    teacher  None: the teacher reads the student's text; the template of its tokenizer is then only compared
    options  `chat_template_kwargs` of both
    """

    student: str | None
    teacher: str | None
    options: Mapping[str, Any] = field(default_factory=dict)


def differences(student: Tokenizer, teacher: Tokenizer, templates: Templates | None) -> list[str]:
    """Return each difference as a sentence about the teacher.

    templates  None where no row is a conversation: only special tokens are compared
    """
    special = [
        f"its {name} is {of_teacher!r}, the student's is {of_student!r}"
        for name in SPECIAL
        if (of_teacher := getattr(teacher, name)) != (of_student := getattr(student, name))
    ]
    affixes = [
        f"its tokenizer adds {of_teacher or 'nothing'} {where} a text, the student's {of_student or 'nothing'}"
        for where, of_teacher, of_student in zip(("before", "after"), _affixes(teacher), _affixes(student), strict=True)
        if of_teacher != of_student
    ]
    return [*special, *affixes, *(_template_differences(student, teacher, templates) if templates else ())]


def _affixes(tokenizer: Tokenizer) -> list[list[str]]:
    """Return the special tokens that a tokenizer adds before, and those that it adds after a text."""
    encoder = TextEncoder(tokenizer)
    return [tokenizer.convert_ids_to_tokens(ids) for ids in (encoder.prefix, encoder.suffix)]


def _template_differences(student: Tokenizer, teacher: Tokenizer, templates: Templates) -> Iterator[str]:
    pairs = ((student, templates.student), (teacher, templates.teacher))
    if not all(template or tokenizer.chat_template for tokenizer, template in pairs):
        return
    try:
        of_student, of_teacher = (
            ChatTemplate(tokenizer, template).with_options(templates.options).render(SAMPLE, "answers")
            for tokenizer, template in pairs
        )
    except (RenderError, UnstableTemplate) as error:
        yield f"its chat template cannot be compared with the student's: {error}"
        return
    if templates.teacher is None and of_teacher.text != of_student.text:
        yield f"its chat template differs {_first_difference(of_teacher.text, of_student.text)}"
    ends = _end_of_answer(of_teacher), _end_of_answer(of_student)
    if ends[0] != ends[1]:
        yield f"its chat template ends an answer with {ends[0]!r}; the answers that it reads end with {ends[1]!r}"


def _first_difference(of_teacher: str, of_student: str) -> str:
    shorter = min(len(of_teacher), len(of_student))
    at = next((n for n, (a, b) in enumerate(zip(of_teacher, of_student, strict=False)) if a != b), shorter)
    return f"from character {at} on: {of_teacher[at : at + SHOWN]!r}, the student's {of_student[at : at + SHOWN]!r}"


def _end_of_answer(rendered: Rendered) -> str:
    """Return what a template puts after the content of an answer, such as an end token; read from the sample."""
    start, end = rendered.spans[0]
    return rendered.text[start:end].partition(ANSWER)[2]


def templates_of(data: Data, tokenizer: Tokenizer, teacher: TeacherEncoder | None, report: Report) -> Templates | None:
    """Return the templates that render a recipe's conversations; None where no row is a conversation."""
    if not report.kinds.keys() & {"messages", "alpaca"}:
        return None
    of_teacher = teacher.chat.template if teacher else None
    return Templates(template_text(data.chat_template, tokenizer), of_teacher, data.chat_template_kwargs)
