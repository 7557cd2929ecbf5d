"""`neoplug tasks`: write multiple-choice questions made from local data, for the multiple-choice probe."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from neoplug.cli.screen import echo


class Maker(StrEnum):
    """The source of the questions."""

    wordnet = "wordnet"


def tasks(
    maker: Annotated[Maker, typer.Argument(help="The source of the questions.", metavar="MAKER")],
    out: Annotated[Path, typer.Argument(help="The jsonl file to write; it must not exist.", metavar="OUT")],
    dict: Annotated[
        Path | None,
        typer.Option(help="The folder of WordNet's files; by default the usual locations.", metavar="DIR"),
    ] = None,
    number: Annotated[int, typer.Option("-n", "--number", min=1, help="How many questions.", metavar="N")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice of questions.")] = 0,
) -> None:
    """Write multiple-choice questions to a file.

    With wordnet as MAKER a question is a word, and its choices are four definitions.
    """
    from neoplug.errors import UsageError
    from neoplug.evaluation import wordnet
    from neoplug.files import write_atomically

    if out.exists():
        raise UsageError(f"{out} exists already\nwhy: nothing is overwritten\nfix: name a file that does not exist yet")
    folder = wordnet.find(dict)
    written = wordnet.questions(folder, number, seed)
    write_atomically(out, "".join(json.dumps(question, ensure_ascii=False) + "\n" for question in written))
    echo(f"{out}: {number} questions from {folder}; the accuracy of guessing is 1 in {wordnet.CHOICES}")
    echo("next: name the file under `probes`, as docs/how-to/evaluate.md shows")
