"""Multiple-choice questions from WordNet's files: which of four definitions is that of a given word?

Reads the database files of WordNet (wndb(5WN)), `index.POS` and `data.POS`, from a folder. The words of the questions
have no spaces or hyphens and occur in WordNet's sense-tagged texts. The right answer is the definition of the word's
most frequent sense; the wrong ones are those of other such words of the same part of speech. The choice of questions
and their order depend only on the seed: fewer questions are the beginning of the same list.
"""

import os
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from neoplug.errors import UsageError
from neoplug.seeds import derive

PARTS = {
    "noun": "noun",
    "verb": "verb",
    "adj": "adjective",
    "adv": "adverb",
}  # suffix of file names -> English name
CHOICES = 4
LONGEST = 60  # characters of a definition; a model reads each question once for each choice
_WORD = re.compile(r"[a-z]{3,}")


@dataclass(frozen=True)
class Sense:
    """A word in its most frequent sense.

    synsets     identifiers of all senses of the word; the first is that of this sense
    definition  of this sense, without examples; empty for a proper name
    """

    word: str
    part: str
    synsets: tuple[str, ...]
    definition: str


def find(folder: Path | None) -> Path:
    """Return the folder of WordNet's files: `folder`, or if it is None the first usual folder that has them.

    Raises:
        UsageError: the files are not there.
    """
    home = os.environ.get("WNHOME")
    usual = [
        os.environ.get("WNSEARCHDIR"),
        home and f"{home}/dict",
        "/usr/share/wordnet",
        "~/nltk_data/corpora/wordnet",
    ]
    places = [folder] if folder else [Path(place).expanduser() for place in usual if place]
    for place in places:
        if any(_files(place, part) for part in PARTS):
            return place
    raise UsageError(
        f"WordNet's files index.noun and data.noun are not here\nwhy: looked in {', '.join(map(str, places))}\n"
        "fix: install them, as with `apt install wordnet-base`, or name their folder with --dict"
    )


def questions(folder: Path, number: int, seed: int = 0) -> list[dict[str, object]]:
    """Return `number` questions as {query, choices, gold}.

    Raises:
        UsageError: the files have fewer usable words, or are not WordNet's.
    """
    pools = {part: list(_senses(*files)) for part in PARTS if (files := _files(folder, part))}
    pools = {part: pool for part, pool in pools.items() if len(pool) >= CHOICES}
    every = sorted((sense for pool in pools.values() for sense in pool), key=lambda s: derive(seed, s.part, s.word))
    if len(every) < number:
        raise UsageError(f"{folder} has {len(every)} words that a question can be made of, fewer than {number}")
    return [_question(sense, pools, seed) for sense in every[:number]]


def _question(sense: Sense, pools: Mapping[str, list[Sense]], seed: int) -> dict[str, object]:
    """Return the question about a word; `pools` holds the words of each part of speech, for the wrong answers."""
    rng = random.Random(derive(seed, "choices", sense.part, sense.word))
    drawn = rng.sample(pools[sense.part], min(64, len(pools[sense.part])))
    wrong = dict.fromkeys(other.definition for other in drawn if not set(other.synsets) & set(sense.synsets))
    others = list(wrong)[: CHOICES - 1]
    if len(others) < CHOICES - 1:
        raise UsageError(f"too few words other than `{sense.word}` to make wrong answers from")
    gold = rng.randrange(CHOICES)
    choices = [*others[:gold], sense.definition, *others[gold:]]
    return {"query": f'The {PARTS[sense.part]} "{sense.word}" means:', "choices": choices, "gold": gold}


def _files(folder: Path, part: str) -> tuple[Path, Path] | None:
    index, data = folder / f"index.{part}", folder / f"data.{part}"
    return (index, data) if index.is_file() and data.is_file() else None


def _senses(index: Path, data: Path) -> Iterator[Sense]:
    """Yield the words of one part of speech that questions can be made of, in the order of the file."""
    definitions = dict(_definitions(data))
    for number, line in enumerate(index.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("  "):  # the licence
            continue
        fields = line.split()
        try:
            word, counted = fields[0], int(fields[5 + int(fields[3])])
            synsets = tuple(fields[6 + int(fields[3]) :])
            definition = definitions[synsets[0]]
        except (IndexError, KeyError, ValueError) as error:
            raise UsageError(f"{index}, line {number}: this is no index of WordNet that fits {data.name}") from error
        if counted and _WORD.fullmatch(word) and _is_fair(word, definition):
            yield Sense(word, index.suffix[1:], synsets, definition)


def _is_fair(word: str, definition: str) -> bool:
    """Return whether a definition is short, and has no word that begins like the word that it defines."""
    return 0 < len(definition) <= LONGEST and word[:5] not in definition.lower()


def _definitions(data: Path) -> Iterator[tuple[str, str]]:
    """Yield each synset's identifier (offset in the file) and its definition, as in `Sense`."""
    for number, line in enumerate(data.read_text(encoding="utf-8").splitlines(), 1):
        fields, _, gloss = line.partition(" | ")
        if not line.startswith("  "):
            try:
                offset, _, _, _, word, *_ = fields.split()
            except ValueError as error:
                raise UsageError(f"{data}, line {number}: this is no data file of WordNet") from error
            yield offset, re.split(r'[;:]\s*"', gloss)[0].strip(" ;") if word.islower() else ""
