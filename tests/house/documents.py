"""The code blocks of the documentation, and the commands in them that tests run."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "examples", "benchmarks")
NAMES = ["README.md", "CONTRIBUTING.md", *(f"{folder}/**/*.md" for folder in FOLDERS)]
DOCUMENTS = sorted({path for name in NAMES for path in ROOT.glob(name)})

RUN = ("neoplug", "python", "torchrun")
# Programs that tests do not run: .ci/run or a reader runs them.
ELSEWHERE = {"pip", "pytest", "ruff", "mypy", "lint-imports", "pre-commit", "coverage", "mkdocs", "run", "lowest"}
ELSEWHERE |= {"git", "cd", "source"}
# What a test adds to a training command of the docs: two steps, and one sentence to evaluate on.
QUICK = "train.max_steps=2 data.eval_source=tests/house/sentence.jsonl"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the line number of its first line, its text."""

    language: str
    line: int
    text: str


def blocks(document: Path, language: str) -> Iterator[Block]:
    """Yield the document's blocks of a language."""
    text = document.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if match[1] == language:
            yield Block(language, text[: match.start(2)].count("\n") + 1, match[2])


def commands(document: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, command) of each command in the document's bash blocks that tests run, as they run it.

    Raises ValueError for a program that is listed neither in RUN nor in ELSEWHERE.
    """
    for block in blocks(document, "bash"):
        for number, text in logical_lines(block.text):
            if "pip install" in text:  # .ci/run runs such a line as it is
                continue
            for command in re.split(r"&&|;", text):
                if (runnable := as_run(command.strip())) is not None:
                    yield block.line + number, runnable


def logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield (number from 0, line) with continuations joined, without empty lines and comments."""
    start, parts = 0, []
    for number, line in enumerate(text.splitlines()):
        start = start if parts else number
        parts.append(line.removesuffix("\\").strip())
        if line.endswith("\\"):
            continue
        joined, parts = " ".join(parts), []
        if joined and not joined.startswith("#"):
            yield start, joined


def as_run(command: str) -> str | None:
    """Return a command as a test runs it: two training steps, benchmarks with --quick; None if tests do not run it."""
    words = shlex.split(command, comments=True)
    words = words[next((at for at, word in enumerate(words) if not re.match(r"\w+=", word)), 0) :]
    program = Path(words[0]).name.removesuffix("3")
    if program in ELSEWHERE or words[1:3] in (["-m", "venv"], ["-m", "pip"]):
        return None
    if program not in RUN:
        raise ValueError(f"`{command}`: {program} is not a known program; see {__file__}")
    command = shlex.join(words) if "#" in command else command
    if trains(words, program):
        return f"{command} {QUICK}"
    return f"{command} --quick" if any("benchmarks/" in word for word in words) else command


def trains(words: list[str], program: str) -> bool:
    """Return whether a command trains, or computes what training reads: `neoplug run`, alone or under torchrun, or
    `neoplug cache RECIPE`.
    """
    names = {Path(word).name for word in words}
    reads = {"neoplug", "run"} <= names or ({"neoplug", "cache"} <= names and not names & {"--list", "--verify"})
    return reads and program in RUN
