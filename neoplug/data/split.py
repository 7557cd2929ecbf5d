"""Which rows are kept from training: those with the smallest content hash.

So the choice needs no seed and does not depend on the order of rows, and identical rows are never on both sides. A
share keeps the rows whose hash lies below it, so that adding rows moves no old one.
"""

import numpy as np

from neoplug.errors import Problem, RecipeError

DIGEST = 16  # bytes of a content hash that are kept: rows that share them are the same


def split(digests: np.ndarray, held_out: int | float | None) -> np.ndarray:
    """Return [rows] bool: which rows are held out.

    digests   [rows] of DIGEST bytes: the beginning of each row's content hash
    held_out  how many rows, or a share in (0, 1); None keeps 5 % of the rows, at most 200, at least 1
    raises    RecipeError where either side would be empty
    """
    if isinstance(held_out, float):
        kept = digests < int(held_out * 2 ** (8 * DIGEST)).to_bytes(DIGEST, "big")
    else:
        rows = max(1, min(200, len(digests) // 20)) if held_out is None else held_out
        kept = digests <= np.sort(digests)[min(rows, len(digests)) - 1]
    if kept.all() or not kept.any():
        raise RecipeError([_empty(len(digests), held_out, training_is_empty=bool(kept.any()))])
    return kept


def _empty(rows: int, held_out: int | float | None, *, training_is_empty: bool) -> Problem:
    asked = "the default (5 % of the rows, at least 1)" if held_out is None else f"{held_out}"
    left = "leaves no row to train on" if training_is_empty else "holds no row out"
    return Problem(
        f"held_out: {asked} of {rows} {'row' if rows == 1 else 'rows'} {left}",
        why="the student is measured on rows that it was not trained on, and identical rows stay together",
        fix="another number, more rows, or eval_source: a file of rows to measure on",
        path=("data", "held_out"),
    )
