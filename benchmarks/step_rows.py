"""The rows that `step.py` trains on: batches of rows, each with `input_ids` and a mask `scored` of answer tokens."""

import json
import pydoc_data.topics
import random
from pathlib import Path
from typing import Any

Row = dict[str, list[Any]]
Rows = list[list[Row]]

LENGTH = 256  # tokens per row of plain text
CHAT = (384, 160, 128, 104, 88, 72, 56, 32)  # tokens of each chat row of a batch; the longest is three times the mean
PROMPT_SHARE = 0.2  # share of a chat row that is prompt and not scored


def plain_rows(tokenizer: Any, batches: int) -> Rows:
    """Return batches of 4 rows of 256 tokens of CPython's documentation, all scored."""
    text = "\n\n".join(pydoc_data.topics.topics.values())
    ids = tokenizer(text)["input_ids"]
    rows = [row(ids[at : at + LENGTH], 0) for at in range(0, 4 * batches * LENGTH, LENGTH)]
    return [rows[at : at + 4] for at in range(0, len(rows), 4)]


def chat_rows(tokenizer: Any, batches: int) -> Rows:
    """Return batches of 8 chat rows of unequal length: a topic's title is the question, its text the answer."""
    topics = sorted(pydoc_data.topics.topics.items(), key=lambda topic: len(topic[1]))[-8 * batches :]
    rng = random.Random(0)
    rng.shuffle(topics)
    drawn = []
    for number, (title, text) in enumerate(topics):
        length = CHAT[number % 8] + (0 if number % 8 == 0 else rng.randint(-12, 12))  # so that all batches differ
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": title}], tokenize=True, return_dict=False)
        answer = tokenizer(text)["input_ids"]
        prompt = prompt[: max(1, round(PROMPT_SHARE * length))]
        drawn.append(row([*prompt, *answer[: length - len(prompt)]], len(prompt)))
    return [drawn[at : at + 8] for at in range(0, len(drawn), 8)]


def chosen_rows(tokenizer: Any, batches: int, file: Path) -> Rows:
    """Return batches of 8 rows of a file of instructions, with about the lengths CHAT."""
    made = [instruction_row(tokenizer, record) for record in json.loads(file.read_text(encoding="utf-8"))]
    drawn = []
    for _ in range(batches):
        batch = []
        for length in CHAT:
            nearest = min(made, key=lambda one: abs(len(one["input_ids"]) - length))
            made.remove(nearest)
            batch.append(nearest)
        drawn.append(batch)
    return drawn


def instruction_row(tokenizer: Any, record: dict[str, str]) -> Row:
    """Return an instruction with its output as a row, cut to the longest length of CHAT."""
    text = "\n".join(filter(None, (record["instruction"], record["input"])))
    question = [{"role": "user", "content": text}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=True, return_dict=False)
    return row([*prompt, *tokenizer(record["output"])["input_ids"]][: CHAT[0]], len(prompt))


def random_rows(shape: str) -> Rows:
    """Return two small batches of random tokens for --quick."""
    rng = random.Random(0)
    lengths = (24, 5, 3) if shape == "chat" else (16, 16)
    return [[row([rng.randrange(200) for _ in range(length)], 1) for length in lengths] for _ in range(2)]


def row(ids: list[int], prompt_length: int) -> Row:
    """Return a row whose tokens after the prompt are scored."""
    return {"input_ids": ids, "scored": [at >= max(prompt_length, 1) for at in range(len(ids))]}
