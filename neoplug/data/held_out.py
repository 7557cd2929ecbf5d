"""Which rows are kept from training: those with the smallest content hash.

So the choice needs no seed and does not depend on the order of rows, and identical rows are never on both sides. A
share keeps the rows whose hash lies below it, so that adding rows moves no old one.
"""

from collections.abc import Sequence

from neoplug.data.columns import Content
from neoplug.errors import Problem, RecipeError

HASHES = 2**256  # how many digests there are


def split(contents: Sequence[Content], held_out: int | float | None) -> tuple[list[Content], list[Content]]:
    """Return the rows to train on and the rows held out, each in the order given.

    held_out  how many rows, or a share in (0, 1); None keeps 5 % of the rows, at most 200, at least 1
    raises    RecipeError where either side would be empty
    """
    limit = _limit(contents, held_out)
    kept = [content for content in contents if int(content.digest, 16) < limit]
    training = [content for content in contents if int(content.digest, 16) >= limit]
    if not training or not kept:
        raise RecipeError([_empty(len(contents), held_out, training_is_empty=not training)])
    return training, kept


def _limit(contents: Sequence[Content], held_out: int | float | None) -> int:
    """Return the hash from which on rows are trained on."""
    if isinstance(held_out, float):
        return int(held_out * HASHES)
    rows = max(1, min(200, len(contents) // 20)) if held_out is None else held_out
    digests = sorted(int(content.digest, 16) for content in contents)
    return digests[min(rows, len(digests)) - 1] + 1


def _empty(rows: int, held_out: int | float | None, *, training_is_empty: bool) -> Problem:
    asked = "the default (5 % of the rows, at least 1)" if held_out is None else f"{held_out}"
    left = "leaves no row to train on" if training_is_empty else "holds no row out"
    return Problem(
        f"held_out: {asked} of {rows} {'row' if rows == 1 else 'rows'} {left}",
        why="the student is measured on rows that it was not trained on, and identical rows stay together",
        fix="another number, more rows, or eval_source: a file of rows to measure on",
        path=("data", "held_out"),
    )
