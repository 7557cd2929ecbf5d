"""Mutated recipes and overrides, as functions of a seed: letters, lines, values, and texts that a recipe never has."""

import random
import re
from collections.abc import Callable, Iterator, Sequence

import yaml

VALUES = (
    *("", "null", "~", "true", "[]", "{}", "[[[]]]", "{a: {b: {c: 1}}}", "''", "'x'", "-1", "0", "1.5", "007", "1_000"),
    *("1e400", "-1e400", "1.7e308", ".nan", ".inf", str(2**63 - 1), str(2**64), "9" * 500, "0x" + "f" * 500, "1:30:00"),
    *(
        "2001-12-14t21:59:43.10-05:00",
        "!!python/object:os.system x",
        "!x 1",
        "&a 1",
        "*a",
        "&a [*a]",
        "<<",
        "? x",
        "- x",
    ),
    *(
        '"\\0"',
        '"\\x1b[31m"',
        '"\\u202e"',
        "\x1b[2J",
        "\ud800",
        "\ufeff",
        "\0",
        "x" * 300,
        "y" * 20_000,
        "./" * 2_000 + "x",
    ),
    *(
        "/dev/zero",
        "/proc/self/environ",
        "../../etc/passwd",
        "https://user:pass@host/x?token=abc",
        "a\nb",
        "|\n  a\n  b",
    ),
    *("[" * 40 + "]" * 40, "{" + ", ".join(f"k{n}: 1" for n in range(300)) + "}", "[" + ", ".join(["1"] * 6_000) + "]"),
    "{a: &b {v: 1}, a: &c [*b, *b], d: [*c, *c, *c]}",
)
_VALUE = re.compile(r"(?<=[:,\[] )[^\s,\[\]{}#]+")

Mutation = Callable[[random.Random, str], str]


def _letter(rng: random.Random, text: str) -> str:
    place = rng.randrange(len(text))
    letter = rng.choice(["", chr(rng.randrange(1, 0x3000)), *"{}[]:,&*!|>'\"%@`#-? \n\t\0"])
    return text[:place] + letter + text[place + 1 :]


def _cut(rng: random.Random, text: str) -> str:
    first, last = sorted(rng.randrange(len(text) + 1) for _ in range(2))
    return text[:first] + text[last:]


def _value(rng: random.Random, text: str) -> str:
    found = rng.choice([*_VALUE.finditer(text)] or [re.compile("$").search(text)])
    return text[: found.start()] + rng.choice(VALUES) + text[found.end() :]


def _lines(rng: random.Random, text: str) -> str:
    lines = text.split("\n")
    place, other = (rng.randrange(len(lines)) for _ in range(2))
    changed = rng.choice([[], [lines[place]] * 2, [lines[other]], ["  " + lines[place]], [lines[place].lstrip()]])
    return "\n".join([*lines[:place], *changed, *lines[place + 1 :]])


def _key(rng: random.Random, text: str) -> str:
    found = rng.choice([*re.finditer(r"[A-Za-z_]+(?=:)", text)] or [re.compile("$").search(text)])
    return (
        text[: found.start()]
        + rng.choice(["x", found[0] + "s", found[0][:-1], "'a b'", "1", "<<", "~"])
        + text[found.end() :]
    )


MUTATIONS: Sequence[Mutation] = (_letter, _cut, _value, _lines, _key)


def mutant(text: str, seed: int) -> str:
    """Return a recipe's text with one to four mutations."""
    rng = random.Random(seed)
    for _ in range(rng.randint(1, 4)):
        text = rng.choice(MUTATIONS)(rng, text) or "x"
    return text


def overrides(text: str, seed: int) -> Iterator[str]:
    """Yield one to four overrides of keys that a recipe's text has, or of what is no key; a shell can pass each."""
    rng = random.Random(f"override {seed}")
    keys = re.findall(r"[A-Za-z_]+(?=:)", text)
    paths = [*_paths(yaml.safe_load(text))]
    for _ in range(rng.randint(1, 4)):
        path = ".".join(rng.choice([*keys, "", "x", '"a.b"', "~", "a" * 300]) for _ in range(rng.choice((1, 2, 3, 40))))
        path = rng.choice([path, *[rng.choice(paths)] * 3])  # most name what the recipe has
        override = f"{path}{rng.choice(['=', '=', '=', '==', ''])}{rng.choice(VALUES)}"
        yield _letter(rng, override).replace("\0", "") if rng.random() < 0.3 else override.replace("\0", "")


def _paths(values: object, *above: str) -> Iterator[str]:
    """Yield the path of each value of a recipe, as overrides write it."""
    for key, value in values.items() if isinstance(values, dict) else ():
        yield ".".join([*above, str(key)])
        yield from _paths(value, *above, str(key))
