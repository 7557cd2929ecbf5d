"""The split into training and held-out rows: those with the smallest content hashes are held out.

The split needs no seed, does not depend on the order of rows, and never puts identical rows on both sides. A share
holds out the rows whose hash is below that share of the hash range, so that adding rows moves no row to the other side.
"""

import numpy as np

from neoplug.errors import Problem, RecipeError

DIGEST = 16  # leading bytes of a content hash; rows that agree in these are identical


def split(digests: np.ndarray, held_out: int | float | None) -> np.ndarray:
    """Return [rows] bool: which rows are held out.

    digests   [rows] of DIGEST bytes: the beginning of each row's content hash
    held_out  number of rows, or a share in (0, 1); None holds out 5 % of the rows, at most 200, at least 1
    raises    RecipeError where either side would be empty
    """
    if isinstance(held_out, float):
        chosen = digests < int(held_out * 2 ** (8 * DIGEST)).to_bytes(DIGEST, "big")
    else:
        rows = max(1, min(200, len(digests) // 20)) if held_out is None else held_out
        chosen = digests <= np.sort(digests)[min(rows, len(digests)) - 1]
    if chosen.all() or not chosen.any():
        raise RecipeError([_empty(len(digests), held_out, training_is_empty=bool(chosen.any()))])
    return chosen


def _empty(rows: int, held_out: int | float | None, *, training_is_empty: bool) -> Problem:
    setting = "the default (5 % of the rows, at least 1)" if held_out is None else f"{held_out}"
    left = "leaves no row to train on" if training_is_empty else "holds no row out"
    return Problem(
        f"held_out: {setting} of {rows} {'row' if rows == 1 else 'rows'} {left}",
        why="the student is evaluated on rows that it was not trained on, and identical rows are on the same side",
        fix="set another number, add rows, or name a file of evaluation rows in eval_source",
        path=("data", "held_out"),
    )
