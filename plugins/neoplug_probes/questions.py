"""Reads multiple-choice questions from jsonl: rows {"query": text, "choices": [text, ...], "gold": index}."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neoplug import UsageError

FORM = 'a row is {"query": "A dog is", "choices": ["an animal", "a fruit"], "gold": 0}; other keys are ignored'


@dataclass(frozen=True)
class Question:
    """A row.

    query    the text before each answer
    choices  the answers, two or more
    gold     the index of the right answer, from 0
    """

    query: str
    choices: tuple[str, ...]
    gold: int


def read_questions(file: Path, limit: int | None = None) -> list[Question]:
    """Return the first questions of a file, at most `limit`.

    Raises UsageError for a row that is not a question, with its line, and for a file without any.
    """
    questions: list[Question] = []
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if line.strip() and len(questions) != limit:
            try:
                questions.append(_question(json.loads(line)))
            except (TypeError, ValueError) as error:
                raise UsageError(f"{file}, line {number}: {error}\nfix: {FORM}") from error
    if not questions:
        raise UsageError(f"{file} has no question\nfix: {FORM}")
    return questions


def _question(row: Any) -> Question:
    """Return a row as a question. Raises TypeError or ValueError with what is wrong with it."""
    if not isinstance(row, dict):
        raise TypeError(f"it is a {type(row).__name__}, not a map")
    for key in ("query", "choices", "gold"):
        if key not in row:
            raise ValueError(f"it has no `{key}`, only {', '.join(row) or 'nothing'}")
    query, choices, gold = row["query"], row["choices"], row["gold"]
    if not isinstance(query, str) or not query.strip():
        raise ValueError("`query` must be text that is not empty")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
        raise ValueError("`choices` must be a list of two texts or more, none of them empty")
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(choices):
        raise ValueError(f"`gold` must be a whole number from 0 to {len(choices) - 1}, the index of the right answer")
    return Question(query, tuple(choices), gold)
