"""`neoplug tasks`: questions for the evaluator, made of what lies on the machine."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from neoplug.cli.screen import say


class Maker(StrEnum):
    """What the questions are made of."""

    wordnet = "wordnet"


def tasks(
    maker: Annotated[Maker, typer.Argument(help="What the questions are made of.", metavar="MAKER")],
    out: Annotated[Path, typer.Argument(help="The jsonl file to write; it must not exist.", metavar="OUT")],
    dict: Annotated[
        Path | None,
        typer.Option(help="The folder of WordNet's files; by default where they usually are.", metavar="DIR"),
    ] = None,
    number: Annotated[int, typer.Option("-n", "--number", min=1, help="How many questions.", metavar="N")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Another seed asks other questions.")] = 0,
) -> None:
    """Write multiple-choice questions to a file.

    MAKER is wordnet: which of four definitions is that of a word?
    """
    from neoplug.errors import UsageError
    from neoplug.evaluation import wordnet
    from neoplug.files import write_atomically

    if out.exists():
        raise UsageError(f"{out} exists already\nwhy: nothing is overwritten\nfix: name a file that does not exist yet")
    folder = wordnet.find(dict)
    made = wordnet.questions(folder, number, seed)
    write_atomically(out, "".join(json.dumps(question, ensure_ascii=False) + "\n" for question in made))
    say(f"{out}: {number} questions made of {folder}; by chance 1 answer in {wordnet.CHOICES} is right")
    say("next: name the file under `probes`, as docs/how-to/evaluate.md shows")
